"""Rows of canonical tensors as values, and values as the rows of an output type."""
