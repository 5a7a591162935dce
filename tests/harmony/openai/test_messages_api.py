"""Anthropic's Messages API: requests as prompts, output as blocks, whole and as events."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from gptoss_harmony.errors import LayoutError
from gptoss_harmony.openai import chat_completions
from gptoss_harmony.openai.messages_api import MessagesRequest
from gptoss_harmony.openai.messages_stream import MessagesStream, to_usage
from gptoss_harmony.openai.thinking import read_thinking, sign
from helpers.tool_answers import NAMES, ids_of_parts, make_answer, show_cut, to_ids

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"name": "get_weather", "description": "Weather.", "input_schema": SCHEMA}]
USER = {"role": "user", "content": "hi"}


def read(**request: Any) -> MessagesRequest:
    return MessagesRequest({"max_tokens": 100, "messages": [USER]} | request)


def prompt(**request: Any) -> list[Any]:
    return [
        (m.role, m.channel, m.recipient, m.text if m.role not in ("system", "developer") else "")
        for m in read(**request).to_conversation().messages
    ]


def run(text: str | list[int], reason: str | None = None, stops: tuple[str, ...] = (), **request: Any) -> Any:
    """The message, and the one that its events add up to."""
    ids = to_ids(text) if isinstance(text, str) else text
    stream = MessagesStream(read(**request), "m", stops=stops)
    events = stream.start(to_usage(5, 0))
    for ident in ids:
        if not stream.stopped:
            events += stream.feed([ident])
    events += stream.finish("stop" if stream.stopped else reason, to_usage(5, len(ids)))
    assert add_up(events) == stream.message
    return stream


def add_up(events: list[dict[str, Any]]) -> dict[str, Any]:
    """As the SDK does it, checking that the order is the API's."""
    assert [e["type"] for e in events[:2]] == ["message_start", "ping"]
    assert [e["type"] for e in events[-2:]] == ["message_delta", "message_stop"]
    message = json.loads(json.dumps(events[0]["message"]))
    opened = None
    for event in events[2:-2]:
        kind = event["type"]
        if kind == "content_block_start":
            assert opened is None and event["index"] == len(message["content"])
            opened = event["index"]
            message["content"].append(dict(event["content_block"]))
        assert event["index"] == opened
        block = message["content"][-1]
        if kind == "content_block_stop":
            opened = None
        elif kind == "content_block_delta":
            delta = dict(event["delta"])
            named = delta.pop("type")
            if named == "input_json_delta":
                block["input"] = json.loads(delta["partial_json"])
            else:
                ((key, text),) = delta.items()
                assert text
                block[key] += text
    assert opened is None
    return message | events[-2]["delta"] | {"usage": events[-2]["usage"]}


def test_a_tool_loop_as_a_prompt() -> None:
    thoughts = {"type": "thinking", "thinking": "Look it up.", "signature": sign("Look it up.")}
    turn = [
        thoughts,
        {"type": "text", "text": "One moment."},
        {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Köln"}},
    ]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]}
    user = {"role": "user", "content": [result, {"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]}
    assert prompt(messages=[USER, {"role": "assistant", "content": turn}, user], tools=TOOLS, system="Be brief.") == [
        ("system", None, None, ""),
        ("developer", None, None, ""),
        ("user", None, None, "hi"),
        ("assistant", "analysis", None, "Look it up."),
        ("assistant", "commentary", None, "One moment."),
        ("assistant", "commentary", "functions.get_weather", '{"city":"Köln"}'),
        ("tool", "commentary", "assistant", "sunny"),
        ("user", None, None, "and\nnow?"),
    ]


def test_the_same_prompt_as_chat_completions() -> None:
    function = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}
    chat = {
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "tools": [{"type": "function", "function": function}],
    }
    ours = read(system=[{"type": "text", "text": "Be brief."}], tools=TOOLS)
    assert ours.to_conversation("2025-08-05") == chat_completions.to_conversation(chat, date="2025-08-05")
    assert ours.to_turn() == chat_completions.to_turn(chat)


@pytest.mark.parametrize(
    ("request_", "effort"),
    [
        ({}, "medium"),
        ({"thinking": {"type": "adaptive"}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 31999}}, "low"),
        ({"output_config": {"effort": "max"}}, "high"),
        ({"thinking": {"type": "disabled"}}, "low"),
    ],
)
def test_effort(request_: dict[str, Any], effort: str) -> None:
    conversation = read(**request_).to_conversation()
    assert conversation.messages[0].content[0].reasoning_effort.value.lower() == effort
    skips = request_.get("thinking", {}).get("type") == "disabled"
    assert (conversation.messages[-1].channel == "analysis") == skips
    assert read(**request_).to_turn().reasoning is not skips


def test_tool_choices() -> None:
    assert read(tools=TOOLS, tool_choice={"type": "any"}).to_turn().final is None
    assert read(tools=TOOLS, tool_choice={"type": "tool", "name": "get_weather"}).to_turn().final is None
    none = read(tools=TOOLS, tool_choice={"type": "none"})
    assert not none.may_call and not none.to_turn().functions
    assert read(tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True}).parallel is False
    assert read(tools=TOOLS).may_call and read(tools=TOOLS).parallel


def test_tools_with_a_type() -> None:
    tools = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "custom", **TOOLS[0]},
    ]
    request = read(tools=tools)
    assert [tool["name"] for tool in request.tools] == ["bash", "str_replace_based_edit_tool", "get_weather"]
    assert len(request.warnings) == 1 and "web_search_20250305" in request.warnings[0]


def test_a_format() -> None:
    request = read(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert request.to_turn().final == SCHEMA


def test_what_cannot_be_read_in_a_result_is_said() -> None:
    call = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": [image]}
    search = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    request = read(
        tools=TOOLS,
        messages=[USER, {"role": "assistant", "content": [search, call]}, {"role": "user", "content": [result]}],
    )
    assert request.to_conversation().messages[-1].text == "Error: [an image left out: this model reads text only]"
    assert len(request.warnings) == 2


def test_documents_and_billing_lines() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=abc;"}
    request = read(messages=[{"role": "user", "content": [document]}], system=[billing])
    assert [m.text for m in request.to_conversation().messages[1:]] == ["T\nD"]


SIGNED = {"type": "thinking", "thinking": "abc", "signature": sign("abc")}


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "holo"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [SIGNED]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text.text"),
        ({"messages": [USER, {"role": "assistant", "content": "The"}]}, ""),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
            "messages[0].content[0]",
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.enabled.budget_tokens"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"output_config": {"effort": "huge"}}, "effort"),
        *(
            ({"messages": [USER, {"role": "assistant", "content": [block]}, USER]}, "messages[1].content[0]")
            for block in (
                SIGNED | {"thinking": "abx"},
                SIGNED | {"signature": ""},
                SIGNED | {"signature": "EqQBCkgIARAB"},
                {"type": "redacted_thinking", "data": "EmwKAhgB"},
                {"type": "tool_result", "tool_use_id": "t"},
            )
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}]}, USER]},
            "messages[1].content[0].thinking.signature",
        ),
    ],
)
def test_refusals(request_: dict[str, Any], where: str) -> None:
    with pytest.raises(LayoutError) as caught:
        request = read(**request_)
        request.to_turn()
        request.to_conversation()
    assert caught.value.where == where


def test_every_change_of_a_signature_is_seen() -> None:
    for text, carry in (("thoughts", False), ("thoughts ✓", True), ("", False)):
        signature = sign(text, carry)
        assert read_thinking("" if carry else text, signature) == text
        for i in range(len(signature)):
            changed = signature[:i] + ("B" if signature[i] == "A" else "A") + signature[i + 1 :]
            assert read_thinking("" if carry else text, changed) is None
        assert read_thinking(text + "x", signature) is None


CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>'


def test_thinking_text_and_a_call() -> None:
    text = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
    message = run(text + "<|start|>assistant" + CALL, tools=TOOLS).message
    thinking, preamble, call = message["content"]
    assert thinking == {"type": "thinking", "thinking": "Look.", "signature": sign("Look.")}
    assert preamble == {"type": "text", "text": "Wait."}
    assert call.pop("id").startswith("toolu_")
    assert call == {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    assert message["stop_reason"] == "tool_use"


def test_thinking_without_its_text_comes_back() -> None:
    text = "<|channel|>analysis<|message|>Secret.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    stream = run(text, thinking={"type": "adaptive", "display": "omitted"})
    thinking = stream.message["content"][0]
    assert thinking["thinking"] == ""
    history = [USER, {"role": "assistant", "content": [thinking]}, USER]
    assert "Secret." in [m.text for m in read(messages=history).to_conversation().messages]


def test_stop_sequences() -> None:
    message = run("<|channel|>final<|message|>one two three<|return|>", stops=("xx", "two", "o th")).message
    assert message["content"] == [{"type": "text", "text": "one "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "two")


def test_calls_that_are_none() -> None:
    cut = run('<|channel|>commentary to=functions.get_weather<|message|>{"city":"Pa', "length", tools=TOOLS)
    assert cut.message["content"] == [] and cut.message["stop_reason"] == "max_tokens" and cut.warnings
    broken = run("<|channel|>commentary to=functions.get_weather<|message|>{'city'}<|call|>", tools=TOOLS)
    assert broken.message["content"] == [{"type": "text", "text": "{'city'}"}]
    assert broken.message["stop_reason"] == "end_turn" and broken.warnings
    unasked = run(CALL)
    assert unasked.message["content"] == [{"type": "text", "text": '{"city":"Paris"}'}]
    assert unasked.uncalled == ["get_weather"]


def test_the_context_is_full() -> None:
    stream = MessagesStream(read(), "m", room=4)
    stream.feed(to_ids("<|channel|>final<|message|>one"))
    stream.finish("length", to_usage(5, 4))
    assert stream.message["stop_reason"] == "model_context_window_exceeded"


def test_every_cut_of_30_answers() -> None:
    """Never a call without its whole arguments, never a word of the markup; whole answers and events are the same."""
    rng = Random(17)
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in NAMES]
    for _ in range(30):
        parts = make_answer(rng)
        ids = ids_of_parts(parts)
        for cut in range(len(ids) + 1):
            content = run(ids[:cut], tools=tools).message["content"]
            reasoning, text, calls = show_cut(parts, cut)
            whole = [(name, json.loads(given)) for name, given in calls if is_object(given)]
            assert [(b["name"], b["input"]) for b in content if b["type"] == "tool_use"] == whole
            assert "\n".join(b["thinking"] for b in content if b["type"] == "thinking") == (reasoning or "")
            assert "\n".join(b["text"] for b in content if b["type"] == "text") == (text or "")


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
