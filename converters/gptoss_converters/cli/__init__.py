"""The `gptoss-convert` program: a file per command."""
