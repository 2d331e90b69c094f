"""Models on this machine: one worker thread over several back-ends."""
