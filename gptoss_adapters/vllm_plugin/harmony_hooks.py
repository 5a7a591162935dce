"""How vLLM comes to parse gpt-oss with `gptoss_harmony`.

vLLM picks `vllm.parser.harmony.HarmonyParser` by the model's type, whatever parser names are given, and looks the class
up where it needs it. The name `openai_gptoss` of the reasoning parser, which is the default for gpt-oss, is resolved
before that, in just those processes that parse. So the name is pointed at our module, and our module puts its class in
place when it is imported: nothing is loaded where nothing is parsed. Here the module is only named.
"""

from __future__ import annotations

NAME = "openai_gptoss"
MODULE = "gptoss_adapters.vllm_plugin.harmony_parser"


def install() -> None:
    """Point vLLM's reasoning parser of gpt-oss at our module. May be called again; raises ImportError without vLLM."""
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.register_lazy_module(NAME, MODULE, "GptOssReasoningParser")
    # Whoever asked for the parser before we came has the built-in class: the name would not be resolved again.
    ReasoningParserManager.reasoning_parsers.pop(NAME, None)
