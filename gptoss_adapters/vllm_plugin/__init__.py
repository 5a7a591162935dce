"""What `pip install gptoss-adapters` adds to vLLM, through its entry point group `vllm.general_plugins`.

vLLM calls `register()` in each of its processes, before any checkpoint is known. It goes through the hooks of
`hooks.py`, each of which is probed first and registers something lazy that hands back vLLM's own for every checkpoint
that vLLM serves right.

    GPTOSS_ADAPTERS_VLLM=off|auto|force      off: no trace; force: also where vLLM's own, or another plugin, would serve
    GPTOSS_ADAPTERS_EXPERTS=native|dequantise   keep MXFP4 experts packed (default), or widen them while loading
    GPTOSS_ADAPTERS_QUANTIZE=mxfp4           quantise bf16 experts while loading
    GPTOSS_ADAPTERS_SELFCHECK=1|require|off  compare the loaded experts with the reference; unset: on GPUs only
    GPTOSS_ADAPTERS_LORA_DIR=DIR             serve the LoRA adapters in a folder by their names
    GPTOSS_ADAPTERS_LORA_ORDER=peft|unsloth  who made fused expert adapters that do not say
    GPTOSS_ADAPTERS_RENDER=1                 render chats with gptoss_harmony
    VLLM_PLUGINS=...                         vLLM's own list of plugins to load (our entry point: gptoss_adapters)

Importing this costs nothing: no torch, no vLLM.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gptoss_adapters.vllm_plugin import policy

if TYPE_CHECKING:
    from gptoss_adapters.vllm_plugin.hooks import Verdict

log = logging.getLogger("vllm.gptoss_adapters")  # a child of vLLM's logger: its handlers and level apply

_registered = False


def register() -> None:
    """The entry point. Idempotent, and never raises: what goes wrong is one line, and vLLM goes on as without us."""
    global _registered
    if _registered or policy.mode() == "off":
        return
    _registered = True
    try:
        from gptoss_adapters.vllm_plugin import hooks

        _say([hooks.install(verdict) for verdict in hooks.judge()])
    except Exception as error:  # whatever it is: vLLM must start
        log.warning("gptoss-adapters stays out: %s: %s", type(error).__name__, error)


def _say(verdicts: list[Verdict]) -> None:
    """One line for a deployment: its other processes find the same, and say it for who debugs them."""
    inside = ", ".join(v.hook.name for v in verdicts if v.is_in) or "nothing"
    outside = [f"{v.hook.name} stays out ({v.why_not})" for v in verdicts if not v.is_in]
    level = logging.WARNING if outside else logging.INFO
    version, asked = policy.describe_version(), " although forced" if outside and policy.mode() == "force" else ""
    log.log(
        level if policy.is_first_process() else logging.DEBUG,
        "gptoss-adapters: in vLLM %s it has put in %s for gpt-oss%s%s",
        version,
        inside,
        "".join(f"; {text}" for text in outside),
        asked,
    )
