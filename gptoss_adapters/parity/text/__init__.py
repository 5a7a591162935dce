"""Does text survive the target: tokenizer, templates, tool calls."""
