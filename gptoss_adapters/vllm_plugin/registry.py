"""Registers the dispatching model class, as a lazy string: nothing is imported before a gpt-oss checkpoint is
loaded.

vLLM keeps what it found out about a class (does it take LoRA, pipeline parallel, EAGLE3) in a file that is named after
the class and holds the hash of our module alone. What it found out is mostly about its own class, which ours builds on:
so the name that we register says which vLLM it is, and no answer outlives an upgrade.
"""

from __future__ import annotations

import re

ARCHITECTURE = "GptOssForCausalLM"  # vLLM's own name: its Harmony, LoRA and reasoning defaults go by it
MODULE = "gptoss_adapters.vllm_plugin.model"


def find_conflict() -> str:
    """Who else has registered the architecture, or ""."""
    from vllm import ModelRegistry

    found = ModelRegistry.models.get(ARCHITECTURE)
    module = str(getattr(found, "module_name", getattr(getattr(found, "model_cls", None), "__module__", "vllm")))
    ours = module.partition(".")[0] in ("vllm", "gptoss_adapters")
    return "" if ours else f"another plugin has registered {ARCHITECTURE}: {module}"


def name_class(version: str) -> str:
    """An attribute of our module that is the class, named for this vLLM."""
    return f"{ARCHITECTURE}_vllm_{re.sub('[^0-9A-Za-z]', '_', version)}"


def install() -> None:
    import vllm
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{MODULE}:{name_class(vllm.__version__)}")
