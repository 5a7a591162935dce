"""Conversations in, token ids out."""
