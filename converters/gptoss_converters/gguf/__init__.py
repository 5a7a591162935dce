"""The GGUF exporter: metadata, tensors, tokenizer."""
