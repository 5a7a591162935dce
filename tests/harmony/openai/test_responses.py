"""The Responses API: items and events, all of them valid for the openai package's own types."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any, get_args

import pytest
from gptoss_harmony import LayoutError, parse
from gptoss_harmony.messages import DeveloperContent, SystemContent
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.responses import (
    finish_response,
    from_messages,
    to_conversation,
    to_response,
    to_turn,
    to_usage,
)
from gptoss_harmony.openai.tool_table import ToolTable
from helpers.chat_completions import extras
from helpers.outputs import gold_cases, ids_of
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel
from test_chat_answers import ANSWERS

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
REQUEST: dict[str, Any] = {"model": "gpt-oss", "input": "hi", "tools": [WEATHER]}
EVENTS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
"""The openai package's model of each event type."""
OPEN_RESPONSES = {"frequency_penalty", "presence_penalty", "store"}
"""Fields that Open Responses requires and the openai package does not declare."""


def check_response(data: dict[str, Any]) -> None:
    model = Response.model_validate(data, strict=True)
    assert extras(model) == OPEN_RESPONSES
    assert json.loads(json.dumps(data)) == data
    for item, parsed in zip(data["output"], model.output, strict=True):
        assert parsed.type == item["type"]


def check_event(data: dict[str, Any]) -> None:
    model = EVENTS[data["type"]].model_validate(data, strict=True)
    assert extras(model) == (OPEN_RESPONSES if "response" in data else set()), data


def rebuild(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output items that a client adds up from the events, checked against the done events on the way."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    output: list[dict[str, Any]] = []
    for event in events:
        check_event(event)
        kind = event["type"].removeprefix("response.")
        item = output[-1] if output else {}
        if kind == "output_item.added":
            assert event["output_index"] == len(output)
            output.append(json.loads(json.dumps(event["item"])))
        elif kind == "content_part.added":
            item["content"].append(json.loads(json.dumps(event["part"])))
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            item["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "reasoning_summary_part.added":
            item["summary"].append(dict(event["part"]))
        elif kind == "reasoning_summary_text.delta":
            item["summary"][event["summary_index"]]["text"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert item["content"][0]["text"] == event["text"]
        elif kind == "function_call_arguments.done":
            assert item["arguments"] == event["arguments"]
        elif kind == "output_item.done":
            item["status"] = event["item"]["status"]
            assert (item, len(output) - 1) == (event["item"], event["output_index"])
    assert events[-1]["response"]["output"] == output
    return output


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


def streamed(ids: list[int], cuts: list[int], **kwargs: Any) -> list[dict[str, Any]]:
    stream = ResponseStream(to_response(REQUEST, "gpt-oss", 1), [WEATHER], **kwargs)
    events = stream.start()
    for a, b in itertools.pairwise([0, *cuts, len(ids)]):
        events += stream.feed(ids[a:b])
    return rebuild(events + stream.finish(usage=to_usage(7, 5)))


def shape(request: dict[str, Any], **kwargs: Any) -> list[tuple[str, str | None, str | None, str]]:
    messages = to_conversation(request, **kwargs).messages
    heads = (SystemContent, DeveloperContent)
    return [
        (m.name or str(m.role), m.channel, m.recipient, m.text)
        for m in messages
        if not isinstance((m.content or [None])[0], heads)
    ]


def test_a_whole_agent_loop() -> None:
    said = from_messages(parse(ids_of(ANSWERS["call"][0])), [WEATHER])
    result = {"type": "function_call_output", "call_id": said[1]["call_id"], "output": "sunny"}
    first = {"role": "user", "content": [{"type": "input_text", "text": "Weather in SF?"}]}
    want = [
        ("user", None, None, "Weather in SF?"),
        ("assistant", "analysis", None, "hm"),
        ("assistant", "commentary", "functions.get_weather", '{"city": "SF"}'),
        ("functions.get_weather", "commentary", "assistant", "sunny"),
    ]
    assert shape(REQUEST | {"input": [first, *said, result]}) == want
    assert shape(REQUEST | {"input": [result]}, previous=[first, *said]) == want
    references = [{"type": "item_reference", "id": item["id"]} for item in said]
    assert shape(REQUEST | {"input": [first, *references, result]}, previous=said)[-3:] == want[-3:]
    answer = from_messages(parse(ids_of("<|channel|>final<|message|>Sunny.<|return|>")))
    later = shape(REQUEST | {"input": "thanks"}, previous=[first, *said, result, *answer])
    assert later == [want[0], *want[2:], ("assistant", "final", None, "Sunny."), ("user", None, None, "thanks")]


def test_instructions_and_leading_messages_are_one_developer_message() -> None:
    items = [
        {"role": "system", "content": "b"},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "c"}]},
    ]
    messages = to_conversation({"instructions": "a", "input": [*items, {"role": "user", "content": "x"}]}).messages
    assert messages[1].content == [DeveloperContent("a\n\nb\n\nc")]


def test_summaries_are_read_where_there_is_no_content() -> None:
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "s1"}, {"type": "summary_text", "text": "s2"}],
    }
    assert shape({"input": [item]}) == [("assistant", "analysis", None, "s1\ns2")]
    assert shape({"input": [item | {"content": [{"type": "reasoning_text", "text": "all"}]}]}) == [
        ("assistant", "analysis", None, "all")
    ]


def test_phases_are_channels() -> None:
    items = from_messages(parse(ids_of(ANSWERS["preamble"][0])), [WEATHER])
    assert [item.get("phase") for item in items] == ["commentary", None]
    assert shape({"input": items})[0] == ("assistant", "commentary", None, "Let me see.")


def test_effort_format_and_choice() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    spec = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    request = REQUEST | {"reasoning": {"effort": "high"}, "text": spec, "instructions": "Do."}
    system, developer = (message.content[0] for message in to_conversation(request).messages[:2])
    assert isinstance(system, SystemContent) and system.reasoning_effort == "High"
    assert isinstance(developer, DeveloperContent) and developer.instructions is not None
    assert developer.instructions.startswith("Do.\n\n# Response Formats\n\n## n\n\n{")
    assert to_turn(request).final == schema
    forced = to_turn(request | {"tool_choice": {"type": "function", "name": "get_weather"}})
    assert forced.final is None and [tool.name for tool in forced.functions] == ["get_weather"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"input": 3}, "input"),
        ({"input": [{"type": "message"}]}, "input[0].role"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"reasoning": {"effort": "?"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "?"}}}, "text.format.type"),
    ],
)
def test_bad_requests_name_the_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(LayoutError) as error:
        to_conversation(REQUEST | change)
    assert error.value.where == where


def test_response_objects_are_valid() -> None:
    request = REQUEST | {
        "tools": [WEATHER, {"type": "browser"}, {"type": "python"}],
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
    }
    start = to_response(request, "gpt-oss", 1)
    check_response(start)
    for text, *_ in ANSWERS.values():
        for reason in ("stop", "length"):
            output = from_messages(parse(ids_of(text)), [WEATHER], finish_reason=reason)
            done = finish_response(start, output, reason, to_usage(10, 5, 2, 4))
            check_response(done)
            assert done["status"] == {"stop": "completed", "length": "incomplete"}[reason]


def test_a_cut_off_item_is_incomplete() -> None:
    assert [item["status"] for item in from_messages(parse(ids_of(ANSWERS["arguments cut off"][0])))] == ["incomplete"]
    output = from_messages(
        parse(ids_of("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"))
    )
    assert [item["status"] for item in output] == ["completed", "incomplete"]


def test_streamed_is_whole() -> None:
    rng = random.Random(1)
    for ids in [*(case["tokens"] for case in gold_cases()), *(ids_of(case[0]) for case in ANSWERS.values())]:
        whole = from_messages(parse(ids, tools=ToolTable([WEATHER]).namespaces()), [WEATHER])
        cuts = sorted(rng.sample(range(len(ids) + 1), min(3, len(ids))))
        assert without_ids(streamed(ids, cuts)) == without_ids(whole)
    assert without_ids(streamed(ids, list(range(1, len(ids))))) == without_ids(whole)


def test_summaries_by_the_caller() -> None:
    ids = ids_of(ANSWERS["answer"][0])
    whole = from_messages(parse(ids), summarise=str.upper)
    assert whole[0]["summary"] == [{"type": "summary_text", "text": "HM"}]
    assert without_ids(streamed(ids, [], summarise=str.upper)) == without_ids(whole)


def test_one_call_only() -> None:
    ids = ids_of(ANSWERS["two calls"][0])
    assert [item["name"] for item in streamed(ids, [], parallel=False)] == ["a"]
    assert [item["name"] for item in streamed(ids, [])] == ["a", "b"]
