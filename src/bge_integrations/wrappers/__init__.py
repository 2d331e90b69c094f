"""Encoders around an encoder: cache, progress bar, first-use check."""
