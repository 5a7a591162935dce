"""Tools that clients declare: those they run come back as the API has them, and a foreign one never ends a session."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.serve_fakes import TESTS
from helpers.serve_inside import ask_app
from typer.testing import CliRunner

from gptoss_adapters.errors import UsageError
from gptoss_adapters.serve import cli

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
FOREIGN = [{"type": "web_search"}, {"type": "file_search", "vector_store_ids": ["x"]}, {"type": "image_generation"}]
FINAL = "<|channel|>final<|message|>Done.<|return|>"


def call(recipient: str, arguments: str = '{"a": 1}') -> str:
    return f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}<|call|>"


def test_what_nobody_here_runs_is_left_out() -> None:
    requests = [(RESPONSES, {"input": "x", "tools": [*FOREIGN, FUNCTION]})]
    requests += [(RESPONSES, {"input": "x", "tools": FOREIGN, "tool_choice": choice}) for choice in CHOICES]
    (_, first), *others = ask_app(requests, call("functions.f"), *[FINAL] * len(CHOICES))
    assert [text.partition(":")[0] for text in first["warnings"]] == [f"tools[{i}].type" for i in range(3)]
    assert [tool["type"] for tool in first["tools"]] == ["web_search", "file_search", "image_generation", "function"]
    assert first["output"][0]["name"] == "f"
    for status, answer in others:
        assert status == 200 and answer["output"][0]["content"][0]["text"] == "Done.", answer
    assert ["tool_choice" in str(answer["warnings"]) for _, answer in others] == [False, *[True] * (len(CHOICES) - 1)]


CHOICES: list[Any] = [
    "auto",
    "required",
    {"type": "web_search"},
    {"type": "allowed_tools", "mode": "required", "tools": [{"type": "file_search"}]},
]


def test_strict_arguments_refuse_them() -> None:
    requests = [(RESPONSES, {"input": "x", "tools": [FUNCTION, tool]}) for tool in (*FOREIGN, {"type": "banana"})]
    for status, answer in ask_app(requests, FINAL, strict_arguments=True):
        assert (status, answer["error"]["param"]) == (400, "tools[1].type")


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview_2025_03_11", "browser_search", "browser"])
def test_a_caller_that_runs_searches_gets_their_calls(kind: str) -> None:
    request = (RESPONSES, {"input": "x", "tools": [{"type": kind}]})
    output = '<|channel|>analysis to=browser.search code<|message|>{"query": "x"}<|call|>'
    _, answer = ask_app([request], output, builtin_tools=frozenset({"browser"}))[0]
    assert answer["output"][0]["name"] == "browser.search" and "warnings" not in answer


def test_codex_first_request_and_its_namespaces_tool() -> None:
    body = json.loads((TESTS / "data" / "clients" / "codex.json").read_text())["body"] | {"model": "m"}
    requests = [(RESPONSES, body | {"stream": stream}) for stream in (False, True)]
    output = call("multi_agent_v1.close_agent", '{"target": "1"}')
    (status, whole), (_, streamed) = ask_app(requests, output)
    assert status == 200
    item = whole["output"][0]
    assert (item["type"], item["namespace"], item["name"]) == ("function_call", "multi_agent_v1", "close_agent")
    last = json.loads(streamed.strip().rpartition("\ndata: ")[2])
    assert last["type"] == "response.completed" and last["response"]["output"][0]["namespace"] == "multi_agent_v1"
    assert {text.partition(":")[0] for text in whole["warnings"]} == {"client_metadata", "tools[8].type"}


def test_tools_of_one_name_are_told_apart() -> None:
    tools = [FUNCTION | {"name": "shell"}, {"type": "shell"}, {"type": "custom", "name": "shell"}]
    outputs = [call("functions.shell"), call("functions.shell_2", '{"commands": ["ls"]}')]
    outputs += [call("functions.shell_3", '{"input": "x"}')]
    answers = ask_app([(RESPONSES, {"input": "x", "tools": tools})] * 3, *outputs)
    assert [answer["output"][0]["type"] for _, answer in answers] == ["function_call", "shell_call", "custom_tool_call"]
    assert [text.partition(":")[0] for text in answers[0][1]["warnings"]] == ["tools[1]", "tools[2]"]
    [(status, answer)] = ask_app([(RESPONSES, {"input": "x", "tools": tools})], FINAL, strict_arguments=True)
    assert status == 200, answer  # it is done as asked
    twice = [FUNCTION, FUNCTION | {"description": "another"}]
    [(status, answer)] = ask_app([(RESPONSES, {"input": "x", "tools": twice})], FINAL, strict_arguments=True)
    assert (status, answer["error"]["param"]) == (400, "tools[1]")


def test_tools_that_items_bring_can_be_called() -> None:
    server = {"type": "mcp", "server_label": "files", "server_url": "http://localhost/"}
    listing = {"type": "mcp_list_tools", "id": "l", "server_label": "files", "tools": [{"name": "ls"}]}
    more = {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}
    user = {"role": "user", "content": "x"}
    requests = [
        (RESPONSES, {"input": [listing, user], "tools": [server]}),
        (RESPONSES, {"input": [user], "tools": [server]}),
        (RESPONSES, {"input": [more, user]}),
    ]
    (_, listed), (_, unlisted), (_, added) = ask_app(requests, call("files.ls"), FINAL, call("functions.f"))
    assert (listed["output"][0]["type"], listed["output"][0]["server_label"]) == ("mcp_call", "files")
    assert "not listed" in unlisted["warnings"][0]
    assert added["output"][0]["name"] == "f" and "warnings" not in added


@pytest.mark.parametrize("extra", [{}, {"tools": [FUNCTION], "tool_choice": "none"}])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_without_tools_a_call_is_content(path: str, extra: dict[str, Any]) -> None:
    start: dict[str, Any] = {CHAT: {"messages": [{"role": "user", "content": "x"}]}, RESPONSES: {"input": "x"}}
    nested = {**extra, **({"tools": [{"type": "function", "function": FUNCTION}]} if extra and path == CHAT else {})}
    for stream in (False, True):
        _, answer = ask_app([(path, start[path] | nested | {"stream": stream})], call("functions.f"))[0]
        text = answer.replace("\\", "") if stream else json.dumps(answer).replace("\\", "")
        assert '{"a": 1}' in text.replace('"}}]}\n\ndata: ', "") or stream
        assert "tool_calls" not in text.replace("parallel_tool_calls", "").replace("max_tool_calls", "")
        assert '"function_call"' not in text and "functions" not in text and "may call no tool" in text


@pytest.mark.parametrize(
    ("text", "names"), [("browser", {"browser"}), ("python, browser", {"browser", "python"}), (",", set())]
)
def test_the_option_names_what_the_caller_runs(monkeypatch: pytest.MonkeyPatch, text: str, names: set[str]) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(cli, "_serve", lambda settings, *_: seen.append(settings))
    CliRunner().invoke(cli.app, ["--backend", "x=y", "--port", "0", "--builtin-tools", text], catch_exceptions=False)
    assert seen[0].builtin_tools == names


def test_the_option_knows_no_other_tools() -> None:
    with pytest.raises(UsageError, match="browser or python"):
        CliRunner().invoke(cli.app, ["--backend", "x=y", "--builtin-tools", "shell"], catch_exceptions=False)
