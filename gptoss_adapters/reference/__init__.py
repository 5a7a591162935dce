"""The canonical gpt-oss model in torch, and decoding with it."""
