"""vLLM's parser with the plugin's in its place, asked as its server asks."""

from __future__ import annotations

import re
from typing import Any

from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import SPECIAL_TOKENS

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


class Tokenizer:
    """What the parsers ask of a tokenizer."""

    def decode(self, ids: Any, **_: Any) -> str:
        return load_vocabulary().decode(list(ids))

    def get_vocab(self) -> dict[str, int]:
        return {}


def load_parser() -> type:
    """The class that vLLM comes to use."""
    from vllm.parser.parser_manager import ParserManager

    from gptoss_adapters.vllm_plugin import harmony_hooks

    harmony_hooks.install()
    found: type = ParserManager.get_parser("openai", "openai_gptoss", enable_auto_tools=True, is_harmony=True)
    assert found.__name__ == "TolerantHarmonyParser"
    found(Tokenizer())  # as vLLM tries a parser when it starts
    return found


def request(**more: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(
        **{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], **more}
    )


def ids_of(text: str) -> list[int]:
    """Token ids of text in which control tokens stand as their names."""
    pieces = re.split(r"(<\|[a-z_]+\|>)", text)
    return [
        i
        for piece in pieces
        for i in ([SPECIAL_TOKENS[piece]] if piece in SPECIAL_TOKENS else load_vocabulary().encode(piece))
    ]
