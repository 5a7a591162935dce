"""What `pip install gptoss-adapters` adds to vLLM, through its entry point group `vllm.general_plugins`.

vLLM calls `register()` in each of its processes, before any checkpoint is known. It runs a list of small installers,
each of which registers something lazy that hands back vLLM's own for every checkpoint that vLLM serves right.

    GPTOSS_ADAPTERS_VLLM=off|auto|force      off: no trace; force: also where vLLM's own would serve, and in any version
    GPTOSS_ADAPTERS_EXPERTS=native|dequantise   keep MXFP4 experts packed (default), or widen them while loading
    GPTOSS_ADAPTERS_QUANTIZE=mxfp4           quantise bf16 experts while loading
    GPTOSS_ADAPTERS_SELFCHECK=1              compare the loaded experts with the reference, log the verdict
    GPTOSS_ADAPTERS_RENDER=1                 render chats with gptoss_harmony
    VLLM_PLUGINS=...                         vLLM's own list of plugins to load (our entry point: gptoss_adapters)

Importing this costs nothing: no torch, no vLLM.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from gptoss_adapters.vllm_plugin import policy

# Modules with an `install()` that registers one thing lazily and may be called again. One that fails is logged and left
# out; the others still run, and vLLM goes on.
INSTALLERS = ("quantization", "registry", "harmony_hooks", "metrics")

log = logging.getLogger("vllm.gptoss_adapters")  # a child of vLLM's logger: its handlers and level apply

_registered = False


def register() -> None:
    """The entry point. Idempotent, and never raises: what goes wrong is one warning, and vLLM goes on as without us."""
    global _registered
    if _registered or policy.mode() == "off":
        return
    _registered = True
    reason = policy.unknown_version()
    if reason and policy.mode() != "force":
        log.warning(
            "gptoss-adapters stays out: %s. GPTOSS_ADAPTERS_VLLM=force tries anyway, =off silences this", reason
        )
        return
    done = [name for name in INSTALLERS if _install(name)]
    log.info("gptoss-adapters: registered %s for gpt-oss", ", ".join(done) or "nothing")


def _install(name: str) -> bool:
    module = f"{__name__}.{name}"
    try:
        if find_spec(module) is None:
            return False
        import_module(module).install()
        return True
    except Exception as error:  # whatever it is: vLLM must start
        log.warning("gptoss-adapters: %s was not installed: %s: %s", name, type(error).__name__, error)
        return False
