"""How vLLM comes to parse gpt-oss with `gptoss_harmony`.

vLLM picks `vllm.parser.harmony.HarmonyParser` by the model's type, whatever parser names are given, and looks the class
up where it needs it. The name `openai_gptoss` of the reasoning parser, which is the default for gpt-oss, is resolved
before that, in just those processes that parse. So the name is pointed at our module, and our module puts its class in
place when it is imported: nothing is loaded where nothing is parsed. Here the module is only named.
"""

from __future__ import annotations

import sys

NAME = "openai_gptoss"
MODULE = "gptoss_adapters.vllm_plugin.harmony_lazy"


def find_conflict() -> str:
    """Who else has put a parser in the place of vLLM's own, or ""."""
    from vllm.reasoning import ReasoningParserManager

    module = ReasoningParserManager.lazy_parsers.get(NAME, ("vllm",))[0]
    loaded = ReasoningParserManager.reasoning_parsers.get(NAME)
    harmony = getattr(sys.modules.get("vllm.parser.harmony"), "HarmonyParser", None)
    for found in (module, getattr(loaded, "__module__", "vllm"), getattr(harmony, "__module__", "vllm")):
        if found.partition(".")[0] not in ("vllm", "gptoss_adapters"):
            return f"another plugin parses gpt-oss: {found}"
    return ""


def install() -> None:
    """Point vLLM's reasoning parser of gpt-oss at our module. May be called again; raises ImportError without vLLM."""
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.register_lazy_module(NAME, MODULE, "GptOssReasoningParser")
    # Whoever asked for the parser before we came has the built-in class: the name would not be resolved again.
    ReasoningParserManager.reasoning_parsers.pop(NAME, None)
