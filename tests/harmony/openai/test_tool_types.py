"""Tools of every type that a client runs: into the prompt as functions, back as the API's own items, and as history."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from gptoss_harmony import parse, render
from gptoss_harmony.openai.chat_completions import ChatStream
from gptoss_harmony.openai.chat_completions import from_messages as to_message
from gptoss_harmony.openai.response_stream import ResponseStream
from gptoss_harmony.openai.responses import from_messages, to_conversation, to_response, to_turn
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.vocabulary import load_vocabulary
from helpers.outputs import ids_of
from openai.types.responses import Response
from openai.types.responses.response_output_item import ResponseOutputItem
from pydantic import TypeAdapter

READ = {"type": "function", "name": "read", "description": "Reads.", "parameters": {"type": "object"}, "strict": False}
TOOLS: list[dict[str, Any]] = [
    READ,
    {"type": "namespace", "name": "mcp__demo", "description": "A demo.", "tools": [READ]},
    {"type": "custom", "name": "patch", "description": "Patches.", "format": {"type": "text"}},
    {"type": "local_shell"},
    {"type": "shell"},
    {"type": "apply_patch"},
    {"type": "tool_search", "execution": "client"},
    {"type": "mcp", "server_label": "files", "server_url": "http://x", "tools": [{"name": "list", "input_schema": {}}]},
]
CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("functions.read", {"a": 1}, {"type": "function_call", "name": "read", "arguments": '{"a": 1}'}),
    (
        "mcp__demo.read",
        {"a": 1},
        {"type": "function_call", "name": "read", "namespace": "mcp__demo", "arguments": '{"a": 1}'},
    ),
    (
        "functions.patch",
        {"input": "*** x"},
        {"type": "custom_tool_call", "status": "completed", "name": "patch", "input": "*** x"},
    ),
    (
        "functions.local_shell",
        {"command": ["ls"], "timeout_ms": 5},
        {
            "type": "local_shell_call",
            "action": {
                "type": "exec",
                "command": ["ls"],
                "env": {},
                "timeout_ms": 5,
            },
        },
    ),
    (
        "functions.shell",
        {"commands": ["ls", "pwd"]},
        {
            "type": "shell_call",
            "action": {"commands": ["ls", "pwd"], "timeout_ms": None, "max_output_length": None},
        },
    ),
    (
        "functions.apply_patch",
        {"type": "create_file", "path": "a", "diff": "+x"},
        {"type": "apply_patch_call", "operation": {"type": "create_file", "path": "a", "diff": "+x"}},
    ),
    (
        "functions.tool_search",
        {"query": "x"},
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "x"}},
    ),
    ("files.list", {"a": 1}, {"type": "mcp_call", "name": "list", "server_label": "files", "arguments": '{"a": 1}'}),
]
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)


def answer(recipient: str, arguments: str) -> list[int]:
    return ids_of(f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}<|call|>")


def test_they_are_in_the_prompt() -> None:
    text = load_vocabulary().decode(render(to_conversation({"input": "x", "tools": TOOLS}).messages))
    assert "namespace mcp__demo {" in text and "// A demo." in text and "namespace files {" in text
    for name in ("read", "patch", "local_shell", "shell", "apply_patch", "tool_search", "list"):
        assert f"type {name} = " in text
    assert [space.name for space in to_turn({"input": "x", "tools": TOOLS}).namespaces] == ["mcp__demo", "files"]


@pytest.mark.parametrize(("recipient", "arguments", "item"), CALLS, ids=[call[0] for call in CALLS])
def test_there_and_back(recipient: str, arguments: dict[str, Any], item: dict[str, Any]) -> None:
    ids = answer(recipient, json.dumps(arguments))
    said = from_messages(parse(ids, tools=ToolTable(TOOLS).namespaces()), TOOLS)[0]
    assert item.items() <= said.items()
    assert ITEM.validate_python(said).type == item["type"]

    output = {"call_id": said.get("call_id", said["id"]), "output": "done"}
    kind = {"function_call": "function_call_output", "tool_search_call": "tool_search_output"}.get(
        said["type"], f"{said['type']}_output"
    )
    if said["type"] == "mcp_call":
        history = [{**said, "output": "done"}]
    elif said["type"] == "tool_search_call":
        history = [said, {"type": kind, "call_id": said["call_id"], "tools": [READ]}]
    else:
        history = [said, {"type": kind, **output}]
    call, result = to_conversation({"input": [{"role": "user", "content": "x"}, *history], "tools": TOOLS}).messages[
        -2:
    ]
    assert (call.recipient, call.channel, json.loads(call.text)) == (recipient, "commentary", arguments)
    assert (result.name, result.channel) == (recipient, "commentary")
    assert result.text == ("done" if "tool_search" not in kind else json.dumps([READ]))


@pytest.mark.parametrize(("recipient", "arguments", "item"), CALLS, ids=[call[0] for call in CALLS])
def test_streamed_as_whole(recipient: str, arguments: dict[str, Any], item: dict[str, Any]) -> None:
    ids = answer(recipient, json.dumps(arguments))
    stream = ResponseStream(to_response({"input": "x", "tools": TOOLS}, "m", 1), TOOLS)
    events = [*stream.start(), *itertools.chain(*(stream.feed([ident]) for ident in ids)), *stream.finish()]
    done = next(event["item"] for event in events if event["type"] == "response.output_item.done")
    assert item.items() <= done.items() and events[-1]["response"]["output"] == [done]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    Response.model_validate(events[-1]["response"])


def test_outputs_of_a_shell_are_text_for_the_model() -> None:
    said = from_messages(parse(answer("functions.shell", '{"commands": ["ls"]}')), TOOLS)[0]
    output = [{"stdout": "a file", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    result = {"type": "shell_call_output", "call_id": said["call_id"], "output": output}
    history = [{"role": "user", "content": "x"}, said, result]
    assert json.loads(to_conversation({"input": history, "tools": TOOLS}).messages[-1].text) == output


def test_custom_tools_in_chat() -> None:
    tools = [{"type": "custom", "custom": {"name": "patch", "format": {"type": "text"}}}]
    ids = answer("functions.patch", '{"input": "x\\ny"}')
    whole = to_message(parse(ids, tools=ToolTable(tools).namespaces()), tools)["tool_calls"][0]
    assert (whole["type"], whole["custom"]) == ("custom", {"name": "patch", "input": "x\ny"})
    stream = ChatStream("m", 1, tools)
    chunks = [*itertools.chain(*(stream.feed([ident]) for ident in ids)), *stream.finish()]
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["custom"] for call in calls] == [whole["custom"]]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_raw_text_is_an_input_and_half_a_call_is_an_item() -> None:
    said = from_messages(parse(answer("functions.patch", "*** Begin"), tools=ToolTable(TOOLS).namespaces()), TOOLS)[0]
    assert said["input"] == "*** Begin"
    cut = answer("functions.shell", '{"commands": ["l')[:-1]
    said = from_messages(parse(cut, tools=ToolTable(TOOLS).namespaces()), TOOLS)[0]
    assert (said["status"], said["action"]["commands"]) == ("incomplete", [])


def test_a_name_without_its_namespace_is_enough_where_one_tool_has_it() -> None:
    table = ToolTable(TOOLS[1:2])
    assert table.recipient("read") == "mcp__demo.read" == table.recipient("read", "mcp__demo")
    both = ToolTable(TOOLS[:2])
    assert (both.recipient("read"), both.recipient("read", "mcp__demo")) == ("functions.read", "mcp__demo.read")
    odd = ToolTable([{"type": "namespace", "name": "browser", "tools": [READ]}, {"type": "browser_search"}])
    assert odd.recipient("read") == "ns_browser.read" and "browser" in odd.builtins
