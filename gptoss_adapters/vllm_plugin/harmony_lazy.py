"""What vLLM imports when it resolves the name of gpt-oss' reasoning parser. It must never fail: vLLM would say that the
name is not registered, and not start.

Our parser comes with it. Where that cannot be imported, or another plugin has taken the place since, vLLM gets what it
would have had without us, and the log says why.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gptoss_adapters.vllm_plugin import harmony_hooks, log, policy


def _choose() -> Any:
    try:
        import_module("vllm.parser.harmony")  # whoever replaces its class has done so by now
        conflict = harmony_hooks.find_conflict()
        if not conflict or policy.mode() == "force":
            from gptoss_adapters.vllm_plugin import harmony_parser

            return harmony_parser.GptOssReasoningParser
        why = conflict
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    log.warning("gptoss-adapters: vLLM's own parser reads gpt-oss' output: %s", why)
    from vllm.reasoning.gptoss_reasoning_parser import GptOssReasoningParser

    return GptOssReasoningParser


GptOssReasoningParser = _choose()
