"""Chat Completions: what the model says, as a message and as chunks, all valid for the openai package's own types."""

from __future__ import annotations

import random

import pytest
from gptoss_harmony import load_vocabulary, parse
from gptoss_harmony.openai.chat_completions import (
    ChatStream,
    from_messages,
    to_completion,
    to_usage,
)
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import SPECIAL_TOKENS
from helpers.chat_completions import WEATHER, assemble, check, shape, streamed, without_ids
from helpers.outputs import gold_cases, ids_of
from openai.types.chat import ChatCompletion, ChatCompletionChunk

ANSWERS = {
    "answer": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
        "hm",
        "42",
        [],
        "stop",
    ),
    "no reasoning": ("<|channel|>final<|message|>42<|return|>", None, "42", [], "stop"),
    "cut off": ("<|channel|>final<|message|>4", None, "4", [], "length"),
    "cut off in a header": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>",
        "hm",
        None,
        [],
        "length",
    ),
    "call": (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary "
        '<|constrain|>json<|message|>{"city": "SF"}<|call|>',
        "hm",
        None,
        [("get_weather", '{"city": "SF"}')],
        "tool_calls",
    ),
    "preamble": (
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.get_weather<|message|>{}<|call|>",
        None,
        "Let me see.",
        [("get_weather", "{}")],
        "tool_calls",
    ),
    "two calls": (
        '<|channel|>commentary to=functions.a<|message|>{"x":1}<|call|><|start|>assistant<|channel|>commentary '
        "to=functions.b<|message|>{}<|call|>",
        None,
        None,
        [("a", '{"x":1}'), ("b", "{}")],
        "tool_calls",
    ),
    "made up result": (
        "<|channel|>commentary to=functions.a<|message|>{}<|call|><|start|>functions.a "
        "to=assistant<|channel|>commentary<|message|>7<|end|><|start|>assistant<|channel|>final<|message|>It "
        "is 7<|return|>",
        None,
        None,
        [("a", "{}")],
        "tool_calls",
    ),
    "text after the arguments": (
        '<|channel|>commentary to=functions.a<|message|>{"x":"}{"}{"y":2} ok<|call|>',
        None,
        None,
        [("a", '{"x":"}{"}')],
        "tool_calls",
    ),
    "no arguments": (
        "<|channel|>commentary to=functions.a<|message|><|call|>",
        None,
        None,
        [("a", "{}")],
        "tool_calls",
    ),
    "arguments cut off": ('<|channel|>commentary to=functions.a<|message|>{"x', None, None, [("a", '{"x')], "length"),
    "two answers": (
        "<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        None,
        "a\nb",
        [],
        "stop",
    ),
    "nothing": ("", None, None, [], "length"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers(case: str) -> None:
    text, reasoning, content, calls, finish = ANSWERS[case]
    message = from_messages(parse(ids_of(text)), [WEATHER])
    got = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", [])]
    assert (message["reasoning_content"], message["content"], got, message["finish_reason"]) == (
        reasoning,
        content,
        calls,
        finish,
    )
    assert message["reasoning"] == reasoning and ("tool_calls" in message) is bool(calls)
    check(ChatCompletion, to_completion(message, "gpt-oss", 1, to_usage(10, 5, 2, 4)))


def test_the_first_call_only() -> None:
    ids = ids_of(ANSWERS["two calls"][0])
    assert len(from_messages(parse(ids), parallel=False)["tool_calls"]) == 1
    assert len(streamed(ids, [], parallel=False)["tool_calls"]) == 1


def test_the_engine_may_know_better_why_it_stopped() -> None:
    ids = ids_of("<|channel|>final<|message|>42")  # an engine that swallows <|return|>
    assert from_messages(parse(ids), finish_reason="stop")["finish_reason"] == "stop"
    stream = ChatStream("m", 1)
    assert (stream.feed(ids) + stream.finish("stop"))[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_engines_stream_the_same() -> None:
    text = ANSWERS["call"][0]
    stream = ChatStream("m", 1, [WEATHER])
    chunks = [chunk for i in range(0, len(text), 3) for chunk in stream.feed_text(text[i : i + 3])]
    assert without_ids(assemble(chunks + stream.finish())) == without_ids(from_messages(parse(ids_of(text)), [WEATHER]))


def test_usage_in_the_last_chunk() -> None:
    stream = ChatStream("m", 1)
    stream.feed(ids_of(ANSWERS["answer"][0]))
    counts = stream.parser.counts
    last = stream.finish(usage=to_usage(3, counts.total, counts.reasoning))[-1]
    check(ChatCompletionChunk, last)
    assert (
        last["choices"] == [] and last["usage"]["completion_tokens_details"]["reasoning_tokens"] == counts.reasoning > 0
    )


def test_what_the_api_gives_back_is_what_the_model_said() -> None:
    ids = ids_of(ANSWERS["preamble"][0].replace("{}", '{"city": "SF"}'))
    said = from_messages(parse(ids), [WEATHER])
    again = shape({"messages": [{"role": "user", "content": "x"}, said], "tools": [WEATHER]})[1:]
    assert again == [(str(m.role), m.channel, m.recipient, m.text) for m in parse(ids)]


def test_streamed_is_whole() -> None:
    rng = random.Random(1)
    for ids in [*(case["tokens"] for case in gold_cases()), *(ids_of(case[0]) for case in ANSWERS.values())]:
        whole = from_messages(parse(ids, tools=ToolTable([WEATHER]).namespaces()), [WEATHER])
        cuts = sorted(rng.sample(range(len(ids) + 1), min(3, len(ids))))
        for way in (cuts, list(range(1, len(ids)))):
            assert without_ids(streamed(ids, way, [WEATHER])) == without_ids(whole)
        check(ChatCompletion, to_completion(whole, "m", 1, to_usage(1, 1)))


def test_no_answer_is_lost_on_random_tokens() -> None:
    rng = random.Random(2)
    marks = [
        SPECIAL_TOKENS[f"<|{name}|>"] for name in ("start", "channel", "message", "end", "call", "return", "constrain")
    ]
    words = [
        load_vocabulary().encode(word)
        for word in ("assistant", "final", "analysis", "commentary", " to=functions.f", "{}", " x", '{"a":')
    ]
    for _ in range(1000):
        parts = [[rng.choice(marks)] if rng.random() < 0.5 else rng.choice(words) for _ in range(rng.randrange(30))]
        ids = [token for part in parts for token in part]
        assert without_ids(streamed(ids, [len(ids) // 2])) == without_ids(from_messages(parse(ids)))
