"""`GPTOSS_ADAPTERS_LORA_DIR`: a folder of LoRA adapters, each served by its name when it is first asked for.

vLLM's own resolver of this kind (`VLLM_LORA_RESOLVER_CACHE_DIR`) passes over every adapter whose config does not spell
the base as the server does, which fine-tuning tools rarely do. The resolver is registered here; it needs vLLM's
`--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`. How adapters are read (lora_loading) is put in place when a
gpt-oss model is built with LoRA, in the processes that do that.
"""

from __future__ import annotations

import os
from pathlib import Path

from gptoss_adapters.errors import UsageError
from gptoss_adapters.vllm_plugin import log
from gptoss_adapters.vllm_plugin.probing import Sources, find_obstacle

SWITCH = "GPTOSS_ADAPTERS_LORA_DIR"
NAME = "gptoss-adapters"


def install() -> None:
    """Registers the resolver if the variable names a folder. May be called again. Raises UsageError for no folder."""
    folder = os.environ.get(SWITCH, "").strip()
    if not folder:
        return
    if not Path(folder).is_dir():
        raise UsageError(f"{SWITCH} is not a folder", got=folder)
    from vllm.lora.resolver import LoRAResolverRegistry

    from gptoss_adapters.vllm_plugin.lora_resolver import FolderResolver

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, FolderResolver(Path(folder)))


def install_loader() -> None:
    """Never raises: without it vLLM reads adapters in its own way."""
    from gptoss_adapters.vllm_plugin.hooks import LORA

    if find_obstacle(LORA.needs, Sources()):
        return  # which was said at the start
    try:
        from gptoss_adapters.vllm_plugin import lora_loading

        lora_loading.install()
    except Exception as error:
        log.warning("gptoss-adapters: vLLM reads LoRA adapters alone: %s: %s", type(error).__name__, error)
