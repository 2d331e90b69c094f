"""What is sent to a host and how its answer is read, per protocol."""
