"""LoRA adapters of every tool: how their files are found and read, and where their tensors belong. Asked by lora.py."""
