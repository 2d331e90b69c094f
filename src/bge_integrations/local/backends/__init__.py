"""What computes one forward pass."""
