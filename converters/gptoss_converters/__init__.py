"""Exporters: from any gpt-oss checkpoint to what each engine loads."""
