"""Tools of one request that share a name: each is offered, and comes back, live and as history, as what it is."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from gptoss_harmony import parse
from gptoss_harmony.openai import chat_completions, responses
from gptoss_harmony.openai.tool_table import Choice, ToolTable
from helpers.tool_answers import to_ids

Json = dict[str, Any]
SCHEMA: Json = {"type": "object", "properties": {"x": {"type": "string"}}}
NAMES = ("shell", "local_shell", "apply_patch", "tool_search", "python", "a b", "functions")


def list_tools(name: str) -> list[Json]:
    """One tool of every kind that can be called `name`."""
    function = {"type": "function", "name": name, "parameters": SCHEMA}
    tools: list[Json] = [
        function,
        {"type": "custom", "name": name},
        {"type": "namespace", "name": name, "tools": [function, {"type": "custom", "name": name}]},
        {"type": "namespace", "name": "a.b", "tools": [function]},
        {"type": "namespace", "name": "a_b", "tools": [function]},
        {"type": "mcp", "server_label": name, "tools": [{"name": name, "input_schema": SCHEMA}]},
        {"type": "mcp", "server_label": "functions", "tools": [{"name": name}]},
    ]
    fixed = ("shell", "local_shell", "apply_patch", "tool_search")
    return [*tools, *({"type": kind} for kind in fixed if name == kind)]


ARGUMENTS = {
    "shell": {"commands": ["ls"]},
    "local_shell": {"command": ["ls"]},
    "apply_patch": {"type": "delete_file", "path": "x"},
    "tool_search": {"query": "x"},
    "custom": {"input": "x"},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_comes_back_as_what_it_is(name: str) -> None:
    for tools in (list_tools(name), list_tools(name)[::-1]):
        table = ToolTable(tools)
        shown = {
            f"{space}.{tool.name}": table.find(f"{space}.{tool.name}")
            for space, inside in table.namespaces().items()
            for tool in inside.tools
        }
        declared = [tool for tool in shown.values() if tool]
        assert len(declared) == len(shown) == len(set(declared))
        for recipient, tool in shown.items():
            assert tool
            arguments = json.dumps(ARGUMENTS.get(tool.kind, {"x": "y"}))
            output = f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}<|call|>"
            [item] = responses.from_messages(parse(to_ids(output), tools=table.namespaces()), tools)
            kinds = {"function": "function_call", "custom": "custom_tool_call"}
            assert item["type"] == kinds.get(tool.kind, f"{tool.kind}_call")
            assert (item.get("name", tool.name), item.get("namespace", item.get("server_label"))) == (
                tool.name,
                tool.namespace,
            )
            items = [{"role": "user", "content": "x"}, item]
            history = responses.to_conversation({"input": items, "tools": tools})
            assert [m.recipient for m in history if m.recipient] == [recipient]


def test_it_is_said_which_name_the_model_sees() -> None:
    table = ToolTable(list_tools("shell"))
    assert [remark.where for remark in table.remarks if remark.kept] == ["tools[1]", "tools[2]", "tools[5]", "tools[7]"]
    assert "'shell_2'" in table.remarks[0].text and "'shell_3'" in table.remarks[-1].text


def test_one_tool_twice_is_offered_once() -> None:
    tool = {"type": "function", "name": "f", "parameters": SCHEMA}
    assert not ToolTable([tool, dict(tool)]).remarks
    table = ToolTable([tool, tool | {"description": "another"}])
    assert [t.description for t in table.functions] == [""] and not table.remarks[0].kept


def test_a_choice_means_the_tool_of_its_type() -> None:
    table = ToolTable(list_tools("shell"))
    one = {kind: table.only([Choice("shell", kind)]) for kind in ("function", "custom", "shell")}
    assert [t.functions[0].name for t in one.values()] == ["shell", "shell_2", "shell_3"]
    assert all(len(t.functions) == 1 for t in one.values())
    custom = ToolTable([{"type": "custom", "name": "f"}])
    assert custom.only([Choice("f", "function")]).functions  # some clients have one type for all


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_chat_says_whose_function_it_is(order: tuple[int, ...]) -> None:
    function = {"type": "function", "function": {"name": "read"}}
    every = [function, *({"type": "namespace", "name": n, "tools": [{"name": "read"}]} for n in ("a", "b"))]
    tools = [every[i] for i in order]
    table = ToolTable(tools)
    for space in ("functions", "a", "b"):
        output = f"<|channel|>commentary to={space}.read <|constrain|>json<|message|>{{}}<|call|>"
        answer = chat_completions.from_messages(parse(to_ids(output), tools=table.namespaces()), tools)
        history = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": answer["tool_calls"]}]
        back = chat_completions.to_conversation({"messages": history, "tools": tools})
        assert [m.recipient for m in back if m.recipient] == [f"{space}.read"]
