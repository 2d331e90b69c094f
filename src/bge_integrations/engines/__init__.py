"""What turns texts into vectors: on this machine, at an OpenAI-compatible host, or at a Space."""
