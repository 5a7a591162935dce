"""Registers the dispatching model class, as a lazy string: nothing is imported before a gpt-oss checkpoint is
loaded.
"""

from __future__ import annotations

ARCHITECTURE = "GptOssForCausalLM"  # vLLM's own name: its Harmony, LoRA and reasoning defaults go by it


def install() -> None:
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"gptoss_adapters.vllm_plugin.model:{ARCHITECTURE}")
