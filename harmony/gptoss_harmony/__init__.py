"""Harmony, the chat format of gpt-oss: render conversations to token ids, parse token ids to messages."""
