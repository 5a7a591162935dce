"""The streaming writer: a plan, the work that fills it, and a journal to go on from."""
