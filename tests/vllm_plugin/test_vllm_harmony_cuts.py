"""vLLM's parser with the plugin: answers cut after every token show no call before its header ends."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from gptoss_harmony import load_vocabulary
from helpers.tool_answers import TOOLS, Part, check_seen, ids_of_parts, make_answer, show_cut

pytestmark = pytest.mark.backend("vllm")


class Tokenizer:
    """What the parsers ask of a tokenizer."""

    def decode(self, ids: Any, **_: Any) -> str:
        return load_vocabulary().decode(list(ids))

    def get_vocab(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("answers", [25, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_every_cut_of_many_answers(answers: int) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager

    from gptoss_adapters.vllm_plugin import harmony_hooks

    harmony_hooks.install()
    ours = ParserManager.get_parser("openai", "openai_gptoss", enable_auto_tools=True, is_harmony=True)
    asked = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}], tools=TOOLS)
    parser = ours(Tokenizer(), asked.tools)
    rng = Random(17)
    for _ in range(answers):
        parts = make_answer(rng)
        ids = ids_of_parts(parts)
        for cut in range(1, len(ids) + 1):
            found = parser.parse("", asked, enable_auto_tools=True, model_output_token_ids=ids[:cut])
            calls = [(call.name, call.arguments) for call in found[2] or ()]
            assert (found[0], found[1], calls) == show_cut(parts, cut), (cut, ids)
            assert read_messages(parser, ids[:cut]) == show_cut(parts, cut), (cut, ids)
        stream_answer(ours(Tokenizer(), asked.tools), asked, parts)


def read_messages(parser: Any, ids: list[int]) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """What vLLM's Responses API is given of an output, sorted as `show_cut` has it. Deltas and messages must agree."""
    texts: dict[str, list[str]] = {"reasoning": [], "content": []}
    calls = []
    deltas = ""
    for segment in [*parser.process_chunk(ids).segments, *parser.flush()]:
        deltas += segment.delta
        if segment.completed_message is None:
            continue
        (content,) = segment.completed_message.content
        assert content.text == deltas and segment.recipient == segment.completed_message.recipient
        deltas = ""
        if segment.recipient is not None:
            assert segment.recipient.startswith("functions.")
            calls.append((segment.recipient.removeprefix("functions."), content.text))
        elif content.text:
            texts["reasoning" if segment.channel == "analysis" else "content"].append(content.text)
    assert not deltas
    reasoning, shown = ("\n".join(texts[kind]) or None for kind in ("reasoning", "content"))
    return reasoning, shown, calls


def stream_answer(parser: Any, asked: Any, parts: list[Part]) -> None:
    """Token by token: what a client has been told is never more than the tokens say."""
    ids = ids_of_parts(parts)
    texts = {"reasoning": "", "content": ""}
    calls: list[list[str]] = []
    for cut, token in enumerate(ids, 1):
        delta = parser.parse_delta("", [token], asked, finished=cut == len(ids))
        for kind in texts if delta else ():
            texts[kind] += getattr(delta, kind) or ""
        for call in delta.tool_calls if delta else ():
            if call.index == len(calls):
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
        check_seen(parts, cut, texts["reasoning"], texts["content"], [(name, given) for name, given in calls])
    assert (texts["reasoning"] or None, texts["content"] or None, [tuple(call) for call in calls]) == show_cut(
        parts, len(ids)
    )
