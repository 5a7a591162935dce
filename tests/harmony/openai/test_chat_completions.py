"""Chat Completions: requests in, messages and chunks out, all of them valid for the openai package's own types."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from gptoss_harmony import LayoutError, Message, load_vocabulary, parse, render_text
from gptoss_harmony.messages import DeveloperContent, ReasoningEffort, SystemContent
from gptoss_harmony.openai.chat_completions import (
    ChatStream,
    from_messages,
    to_completion,
    to_conversation,
    to_turn,
    to_usage,
)
from gptoss_harmony.openai.requests import ToolTable
from gptoss_harmony.tokens import SPECIAL_TOKENS
from helpers.outputs import ids_of
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

DATA = Path(__file__).parents[2] / "data" / "harmony"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OUR_EXTRAS = {"reasoning_content", "reasoning"}


def shape(request: dict[str, Any], **kwargs: Any) -> list[tuple[str, str | None, str | None, str]]:
    """(author, channel, recipient, text) of each message after system and developer."""
    messages = to_conversation(request, **kwargs).messages
    return [(m.name or str(m.role), m.channel, m.recipient, m.text) for m in messages if not _is_head(m)]


def _is_head(message: Message) -> bool:
    return any(isinstance(part, SystemContent | DeveloperContent) for part in message.content)


def extras(model: BaseModel) -> set[str]:
    """Names of fields that the openai types do not know, anywhere inside `model`."""
    found = set(model.model_extra or {})
    for value in model.__dict__.values():
        for inner in value if isinstance(value, list) else [value]:
            found |= extras(inner) if isinstance(inner, BaseModel) else set()
    return found


def check(kind: type[BaseModel], data: dict[str, Any]) -> None:
    model = kind.model_validate(data, strict=True)
    assert extras(model) <= OUR_EXTRAS
    assert json.loads(json.dumps(data)) == data


def assemble(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of a stream: the deltas added up."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": None,
        "reasoning": None,
    }
    for chunk in chunks:
        check(ChatCompletionChunk, chunk)
        for choice in chunk["choices"]:
            for key, value in choice["delta"].items():
                if key == "tool_calls":
                    _add_call(message.setdefault("tool_calls", []), value[0])
                elif key != "role":
                    message[key] = (message[key] or "") + value
            message["finish_reason"] = choice["finish_reason"]
    return message


def _add_call(calls: list[dict[str, Any]], delta: dict[str, Any]) -> None:
    if delta["index"] == len(calls):
        calls.append({"id": delta["id"], "type": "function", "function": dict(delta["function"])})
    else:
        assert delta["index"] == len(calls) - 1
        calls[-1]["function"]["arguments"] += delta["function"]["arguments"]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{key: value for key, value in call.items() if key != "id"} for call in message.get("tool_calls", [])]
    return message | ({"tool_calls": calls} if calls else {})


def streamed(ids: list[int], cuts: list[int], tools: Any = None, **kwargs: Any) -> dict[str, Any]:
    stream = ChatStream("gpt-oss", 1, tools, **kwargs)
    edges = [0, *cuts, len(ids)]
    chunks = [chunk for a, b in itertools.pairwise(edges) for chunk in stream.feed(ids[a:b])]
    return assemble(chunks + stream.finish())


def test_a_plain_request() -> None:
    conversation = to_conversation({"messages": [{"role": "user", "content": "hi"}]}, date="2025-06-28")
    assert render_text(conversation) == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
        "2024-06\n"
        "Current date: 2025-06-28\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel "
        "must be "
        "included for every message.<|end|><|start|>user<|message|>hi<|end|><|start|>assistant"
    )


def test_an_agent_turn_keeps_its_reasoning_and_a_finished_turn_does_not() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "SF"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Use tools."}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "reasoning_content": "greet", "content": "Hi!"},
        {"role": "user", "content": [{"type": "text", "text": "weather"}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "reasoning_content": "look it up", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    request = {"messages": messages, "tools": [WEATHER]}
    developer = to_conversation(request).messages[1].content[0]
    assert isinstance(developer, DeveloperContent) and developer.instructions == "Be brief.\n\nUse tools."
    assert developer.tools is not None and developer.tools["functions"].tools[0].description == "Weather in a city."
    assert shape(request) == [
        ("user", None, None, "hello"),
        ("assistant", "final", None, "Hi!"),
        ("user", None, None, "weather?"),
        ("assistant", "analysis", None, "look it up"),
        ("assistant", "commentary", None, "Let me see."),
        ("assistant", "commentary", "functions.get_weather", '{"city": "SF"}'),
        ("functions.get_weather", "commentary", "assistant", "sunny"),
    ]


def test_parallel_results_find_their_calls_by_id() -> None:
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in enumerate("ab")
    ]
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": str(i)} for i in (1, 0)]
    got = shape(
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                *results,
            ]
        }
    )
    assert [(m[0], m[3]) for m in got[-2:]] == [("functions.b", "1"), ("functions.a", "0")]


@pytest.mark.parametrize("kind", ["reasoning", "reasoning_text", "thinking"])
def test_reasoning_among_the_parts_is_no_answer(kind: str) -> None:
    parts = [{"type": kind, kind if kind == "thinking" else "text": "hm"}, {"type": "text", "text": "Hi"}]
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": parts}]
    again = [("user", None, None, "x"), ("assistant", "analysis", None, "hm"), ("assistant", "final", None, "Hi")]
    assert shape({"messages": said})[1:] == again[2:]  # the turn is over, so its reasoning is dropped
    said[1]["content"] = parts[:1]
    assert shape({"messages": said})[1:] == [again[1]]


def test_content_none_and_empty() -> None:
    rows = [
        {"role": "assistant", "content": None, "reasoning": "r"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": ""},
    ]
    assert shape({"messages": rows}) == [("assistant", "analysis", None, "r"), ("user", None, None, "")]


def test_later_instructions_stay_in_place() -> None:
    rows = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "Now in French."},
        {"role": "user", "content": "b"},
    ]
    messages = to_conversation({"messages": rows}).messages
    assert [str(m.role) for m in messages] == ["system", "user", "developer", "user"]
    assert messages[2].content == [DeveloperContent("Now in French.")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "Medium"),
        ("none", "Low"),
        ("minimal", "Low"),
        ("low", "Low"),
        ("medium", "Medium"),
        ("high", "High"),
        ("xhigh", "High"),
    ],
)
def test_effort(given: str | None, expected: str) -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": given}
    messages = to_conversation(request).messages
    system = messages[0].content[0]
    assert isinstance(system, SystemContent) and system.reasoning_effort == ReasoningEffort(expected)
    closed = given == "none"
    assert ((messages[-1].channel, messages[-1].text) == ("analysis", "")) is closed
    assert to_turn(request).reasoning is not closed


def test_built_in_tools_come_and_go_as_calls() -> None:
    tools = [{"type": "browser"}, {"type": "python"}]
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
    system = to_conversation(request).messages[0].content[0]
    assert (
        isinstance(system, SystemContent) and system.tools is not None and list(system.tools) == ["browser", "python"]
    )
    out = from_messages(parse(ids_of('<|channel|>analysis to=python code<|message|>print("é\n")<|call|>')), tools)
    assert [c["function"] for c in out["tool_calls"]] == [
        {"name": "python", "arguments": '{"code": "print(\\"é\\n\\")"}'}
    ]
    request["messages"] += [out, {"role": "tool", "tool_call_id": out["tool_calls"][0]["id"], "content": "é"}]
    assert shape(request)[1:] == [
        ("assistant", "analysis", "python", 'print("é\n")'),
        ("python", "analysis", "assistant", "é"),
    ]
    out = from_messages(
        parse(ids_of('<|channel|>analysis to=browser.search code<|message|>{"query":"x"}<|call|>')), tools
    )
    assert out["tool_calls"][0]["function"] == {"name": "browser.search", "arguments": '{"query":"x"}'}


@pytest.mark.parametrize(
    ("kind", "name"), [("python", "python"), ("code_interpreter", "python"), ("web_search", "browser.search")]
)
def test_a_function_with_the_name_of_a_declared_builtin_is_refused(kind: str, name: str) -> None:
    function = {"type": "function", "function": {"name": name}}
    for tools in ([function, {"type": kind}], [{"type": kind}, function]):
        with pytest.raises(LayoutError, match="rename the function"):
            ToolTable(tools)
    assert ToolTable([function]).api_name(f"functions.{name}") == name


def test_arguments_that_python_cannot_read_are_code() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert ToolTable([{"type": "python"}]).call("python", deep).text == deep


def test_names_that_no_header_can_carry() -> None:
    tools = [
        {"type": "function", "function": {"name": name}}
        for name in ("mcp: read", "mcp__read", "mcp_/read", "a-b", "<|end|>")
    ]
    table = ToolTable(tools)
    assert [tool.name for tool in table.functions] == ["mcp__read", "mcp__read_2", "mcp__read_3", "a-b", "__end__"]
    for tool in tools:
        name = tool["function"]["name"]
        assert table.api_name(table.recipient(name)) == name


def test_tool_choice() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    request: dict[str, Any] = {
        "messages": [{"role": "user", "content": "x"}],
        "tools": [WEATHER, other, {"type": "python"}],
    }

    def allowed(choice: Any) -> tuple[list[str], tuple[str, ...], Any]:
        spec = to_turn(request | {"tool_choice": choice})
        return [tool.name for tool in spec.functions], spec.builtins, spec.final

    everything = ["get_weather", "other"]
    assert allowed("auto") == (everything, ("python",), "text")
    assert allowed("none") == ([], (), "text")
    assert allowed("required") == (everything, ("python",), None)
    assert allowed({"type": "function", "function": {"name": "other"}}) == (["other"], (), None)
    assert allowed({"type": "python"}) == ([], ("python",), None)
    subset = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]},
    }
    assert allowed(subset) == (["other"], (), "text")
    assert (
        len(to_conversation(request | {"tool_choice": "none"}).messages) == 2
    )  # no developer message: no tools offered
    with pytest.raises(LayoutError, match="no tool to call"):
        allowed({"type": "function", "function": {"name": "absent"}})
    with pytest.raises(LayoutError, match="no tool to call"):
        to_turn({"messages": [], "tool_choice": "required"})


def test_response_format_is_the_last_section_of_the_instructions() -> None:
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "string"}}}}
    spec = {
        "type": "json_schema",
        "json_schema": {"name": "shopping_list", "description": "What to buy", "schema": schema},
    }
    request = {
        "messages": [{"role": "system", "content": "Help."}, {"role": "user", "content": "x"}],
        "response_format": spec,
    }
    assert (
        "# Instructions\n\nHelp.\n\n# Response Formats\n\n## shopping_list\n\n// What to buy\n"
        '{"type":"object","properties":{"items":{"type":"array","items":{"type":"string"}}}}<|end|>'
    ) in render_text(to_conversation(request))
    assert to_turn(request).final == schema


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"messages": None}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "nope", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"tools": [{"type": "mystery"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_bad_requests_name_the_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(LayoutError) as error:
        to_conversation({"messages": [{"role": "user", "content": "x"}]} | change)
    assert error.value.where == where


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


def gold_streams() -> list[list[int]]:
    lines = gzip.decompress((DATA / "parse_cases.jsonl.gz").read_bytes()).splitlines()
    lines += (DATA / "fixed_parse_cases.jsonl").read_bytes().splitlines()
    return [json.loads(line)["tokens"] for line in lines]


def test_streamed_is_whole() -> None:
    rng = random.Random(1)
    for ids in [*gold_streams(), *(ids_of(case[0]) for case in ANSWERS.values())]:
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
