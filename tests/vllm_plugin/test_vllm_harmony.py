"""gpt-oss output through `gptoss_harmony` in vLLM: both APIs' ways in, on malformed output, and what vLLM's own
makes of it.
"""

from __future__ import annotations

import subprocess
import sys
from random import Random
from typing import Any

import pytest
from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import FIRST_SPECIAL
from helpers.vllm_parser import Tokenizer, ids_of, load_parser, request

pytestmark = pytest.mark.backend("vllm")


@pytest.fixture(scope="module")
def ours() -> type:
    return load_parser()


@pytest.fixture(scope="module")
def builtin(ours: type) -> type:
    return ours.__mro__[1]


def whole(cls: type, ids: list[int], asked: Any) -> tuple[Any, Any, list[tuple[str, str]]]:
    parser = cls(Tokenizer(), asked.tools)
    reasoning, content, calls = parser.parse(
        load_vocabulary().decode(ids), asked, enable_auto_tools=True, model_output_token_ids=ids
    )
    return reasoning, content, [(call.name, call.arguments) for call in calls or ()]


def streamed(cls: type, ids: list[int], asked: Any, rng: Random) -> tuple[Any, Any, list[tuple[str, str]]]:
    parser, reasoning, content, calls, at = cls(Tokenizer(), asked.tools), "", "", {}, 0
    while True:
        step = min(len(ids) - at, rng.choice((1, 1, 2, 5)))
        delta = parser.parse_delta("", ids[at : at + step], asked, finished=at + step >= len(ids))
        at += step
        for call in delta.tool_calls if delta else ():
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
        reasoning, content = (
            reasoning + ((delta and delta.reasoning) or ""),
            content + ((delta and delta.content) or ""),
        )
        if at >= len(ids):
            return reasoning or None, content or None, [calls[i] for i in sorted(calls)]


CALL = ("get_weather", '{"city":"Paris"}')
CASES = {  # output: (reasoning, content, calls)
    "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>": (
        "think",
        "Hi.",
        [],
    ),
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + CALL[1] + "<|call|>": (
        None,
        None,
        [CALL],
    ),
    "Just an answer.": (None, "Just an answer.", []),
    "<|channel|>final<|message|>cut o": (None, "cut o", []),
    "<|channel|>analysis": (None, None, []),
    "<|channel|>analysis<|message|>think<|start|>assistant<|channel|>final<|message|>Hi.<|return|>": (
        "think",
        "Hi.",
        [],
    ),
    "<|channel|>commentary to=functions.get_weather to=functions.get_weather json<|message|>" + CALL[1] + "<|call|>": (
        None,
        None,
        [CALL],
    ),
    "<|channel|>commentary to=get_weather<|message|>" + CALL[1] + "<|call|>": (None, None, [CALL]),
    "<|channel|>commentary to=functions.get_weather json<|message|>" + CALL[1] + "{}<|call|>": (None, None, [CALL]),
    "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>": ("a", "b", []),
}


@pytest.mark.parametrize("text", CASES, ids=lambda text: text[:60])
def test_malformed_output(text: str, ours: type) -> None:
    asked = request()
    assert whole(ours, ids_of(text), asked) == CASES[text]
    for seed in range(3):
        assert streamed(ours, ids_of(text), asked, Random(seed)) == CASES[text]


def test_the_built_in_loses_some_of_it(builtin: type) -> None:
    """The negative control: without the plugin these cases would not all come out right."""
    from openai_harmony import HarmonyError

    asked = request()

    def is_right(text: str) -> bool:
        try:
            return whole(builtin, ids_of(text), asked) == CASES[text]
        except HarmonyError:  # before 0.32
            return False

    assert sum(not is_right(text) for text in CASES) >= 3


def test_calls_that_cannot_be_shown_become_content(ours: type) -> None:
    text = "<|channel|>commentary to=functions.get_weather json<|message|>" + CALL[1] + "<|call|>"
    for asked in (request(tools=None), request(tool_choice="none")):
        assert whole(ours, ids_of(text), asked) == (None, CALL[1], [])
        assert streamed(ours, ids_of(text), asked, Random(0)) == (None, CALL[1], [])


def noise(rng: Random) -> list[int]:
    """Words, headers and control tokens in any order."""
    words = [
        "Hi",
        " to=functions.get_weather",
        " to=browser.foo",
        " to=browser.search",
        " to=python",
        " to=x.y",
        "analysis",
        "final",
        "commentary",
        "odd",
        "assistant",
        "user",
        " json",
        '{"a":1}',
        '{"query":"q"}',
        "{",
        " ",
        "\n",
        "é",
        "日本",
    ]
    marks = [
        "<|start|>",
        "<|end|>",
        "<|message|>",
        "<|channel|>",
        "<|constrain|>",
        "<|call|>",
        "<|return|>",
        "<|endoftext|>",
    ]
    return [i for _ in range(rng.randrange(1, 24)) for i in ids_of(rng.choice(words if rng.random() < 0.5 else marks))]


def test_noise_streams_as_it_parses(ours: type) -> None:
    rng = Random(1)
    for _ in range(400):
        ids, asked = noise(rng), request()
        assert streamed(ours, ids, asked, rng) == whole(ours, ids, asked), load_vocabulary().decode(ids)
        assert 0 <= ours(Tokenizer(), asked.tools).count_reasoning_tokens(ids) <= len(ids)


@pytest.mark.parametrize("text", list(CASES)[:2], ids=lambda text: text[:40])
def test_reasoning_tokens_are_counted_as_vllm_does(text: str, ours: type, builtin: type) -> None:
    ids, asked = ids_of(text), request()
    parser = ours(Tokenizer(), asked.tools)
    parser.parse("", asked, model_output_token_ids=ids)
    # Token by token, and no control tokens, which vLLM counted too before 0.31.
    theirs = builtin(Tokenizer(), asked.tools)
    counts = [(token, theirs.process_chunk([token]).reasoning_token_count) for token in ids]
    expected = sum(count for token, count in counts if token < FIRST_SPECIAL)
    assert (
        expected > 0
        and parser.count_reasoning_tokens(ids) == ours(Tokenizer(), asked.tools).count_reasoning_tokens(ids) == expected
    )


def test_noise_never_breaks_the_responses_api(ours: type) -> None:
    """Every segment goes through the code that makes vLLM's Responses items, whole and streamed; nothing raises."""
    from vllm.entrypoints.openai.responses import streaming_events as events
    from vllm.entrypoints.openai.responses.harmony import harmony_to_response_output

    rng, names = Random(2), frozenset({"get_weather"})
    tool = {"type": "function", "name": "get_weather", "parameters": {}}
    for round_ in range(400):
        ids = noise(rng)
        parser = ours(Tokenizer(), [tool, {"type": "web_search_preview"}] if round_ % 2 else [tool])
        segments, at = [], 0
        while at < len(ids):
            step = rng.choice((1, 3))
            segments += parser.process_chunk(ids[at : at + step]).segments
            at += step
        segments += parser.flush()
        state, told = events.StreamingState(), []
        for segment in segments:
            if segment.delta:
                told += events.emit_content_delta_events(segment, state, names)
            else:
                told += events.emit_previous_item_done_events(segment.completed_message, state, names)
                told += events.emit_tool_action_events(segment.completed_message, state, Everything())
                told += harmony_to_response_output(segment.completed_message, names)
                state.reset_for_new_item()
        assert parser.process_chunk([]).segments == parser.flush() == []


class Everything:
    """A tool server that has every tool."""

    def has_tool(self, name: str) -> bool:
        return True


def test_what_a_request_demands_becomes_a_structural_tag(ours: type) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    formatted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for more in ({"tool_choice": "required"}, {"tool_choice": named}, {"tools": None, "response_format": formatted}):
        asked = ours(Tokenizer(), None).adjust_request(request(**more))
        assert '"token": 200005' in asked.structured_outputs.structural_tag and asked.response_format is None
    assert ours(Tokenizer(), None).adjust_request(request()).structured_outputs is None


OFF = """
from gptoss_adapters.vllm_plugin import register
register()
import sys
from vllm.parser.parser_manager import ParserManager
from vllm.reasoning import ReasoningParserManager
assert ReasoningParserManager.lazy_parsers["openai_gptoss"][0].startswith("vllm."), "a trace"
assert "gptoss_adapters.vllm_plugin.harmony_parser" not in sys.modules
"""


def test_off_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "off")
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
