"""Checkpoints made from a seed, and the trained pocket checkpoint."""
