"""Chat Completions: what a request becomes, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
from gptoss_harmony import LayoutError, parse, render_text
from gptoss_harmony.messages import DeveloperContent, ReasoningEffort, SystemContent
from gptoss_harmony.openai.chat_completions import from_messages, to_conversation, to_turn
from gptoss_harmony.openai.tool_table import ToolTable
from helpers.chat_completions import WEATHER, shape
from helpers.outputs import ids_of


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


def test_calls_and_results_of_2023_stay_in_the_history() -> None:
    call = {"name": "get_weather", "arguments": '{"city": "SF"}'}
    request = {
        "messages": [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": "Let me see.", "function_call": call},
            {"role": "function", "name": "get_weather", "content": "sunny"},
        ],
        "tools": [WEATHER],
    }
    assert shape(request)[1:] == [
        ("assistant", "commentary", None, "Let me see."),
        ("assistant", "commentary", "functions.get_weather", '{"city": "SF"}'),
        ("functions.get_weather", "commentary", "assistant", "sunny"),
    ]
    with pytest.raises(LayoutError, match=r"messages\[0\]\.function_call\.name"):
        to_conversation({"messages": [{"role": "assistant", "function_call": {"arguments": "{}"}}]})


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
def test_a_declared_builtin_gives_way_to_a_tool_with_its_name(kind: str, name: str) -> None:
    function = {"type": "function", "function": {"name": name}}
    for tools in ([function, {"type": kind}], [{"type": kind}, function]):
        table = ToolTable(tools)
        assert not table.builtins and table.api_name(f"functions.{name}") == name
        where = f"tools[{tools.index({'type': kind})}]"
        assert [(remark.where, remark.kept) for remark in table.remarks] == [(where, False)]
    assert not ToolTable([{"type": kind}, {"type": "function", "function": {"name": "browser"}}]).remarks


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
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_bad_requests_name_the_place(change: dict[str, Any], where: str) -> None:
    with pytest.raises(LayoutError) as error:
        to_conversation({"messages": [{"role": "user", "content": "x"}]} | change)
    assert error.value.where == where
