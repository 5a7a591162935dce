"""Requests as clients send them: what this server does not know or have is done without and named in `warnings`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serve_fakes import Served

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
START: dict[str, Any] = {CHAT: {"messages": [{"role": "user", "content": "hello"}]}, RESPONSES: {"input": "hello"}}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(
        "helpers.serve_fakes:Echo=x", tmp_path_factory.mktemp("server"), "--model", "m", "--log-contents"
    ) as running:
        yield running


def post(server: Served, path: str, **extra: Any) -> dict[str, Any]:
    return post_and_log(server, path, **extra)[0]


def post_and_log(server: Served, path: str, **extra: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer and the log's line of it."""
    answer = server.http.post(path, json=START[path] | extra)
    assert answer.status_code == 200, answer.text
    return answer.json(), server.line_of(answer.headers["x-request-id"])


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"client_metadata": {"a": "b"}}, "client_metadata"),
        ({"unheard_of": [1, {"x": None}]}, "unheard_of"),
        ({"cache_prompt": True, "timings_per_token": True}, "timings_per_token"),
        ({"keep_alive": "5m"}, "keep_alive"),
        ({"options": {"temperature": 0, "num_ctx": 4096}}, "options.num_ctx"),
        ({"chat_template_kwargs": {"reasoning_effort": "low", "x": 1}}, "chat_template_kwargs.x"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"reasoning": {"effort": "low", "max_tokens": 9}}, "reasoning.max_tokens"),
    ],
)
def test_what_is_unknown_or_lacking_is_named(server: Served, path: str, extra: dict[str, Any], named: str) -> None:
    answer = server.http.post(path, json=START[path] | extra)
    assert answer.status_code == 200, answer.text
    text = answer.text.replace("\\", "")
    assert '"warnings"' in text and named + ": " in text


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize(
    "extra",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1, "best_of": 1},
        {"logit_bias": {}, "top_logprobs": 0, "ignore_eos": False},
        {"max_tokens": -1},
        {"chat_template_kwargs": {"reasoning_effort": "high"}},
        {"think": True, "enable_thinking": True, "thinking": {"type": "enabled"}},
        {"reasoning": {"effort": None, "max_tokens": None, "summary": "auto", "enabled": True}},
        {"user": "u", "prompt_cache_key": "k", "service_tier": "auto"},
    ],
)
def test_what_asks_for_nothing_is_not_worth_a_word(server: Served, path: str, extra: dict[str, Any]) -> None:
    assert "warnings" not in post(server, path, **extra)


def test_arguments_of_one_api(server: Served) -> None:
    assert len(post(server, CHAT, n=2)["choices"]) == 2
    assert "n: unknown argument" in post(server, RESPONSES, n=2)["warnings"][0]
    assert "text.verbose: unknown" in post(server, RESPONSES, text={"verbosity": "low", "verbose": 1})["warnings"][0]
    assert "background: " in post(server, RESPONSES, background=True)["warnings"][0]
    every = ["web_search_call.action.sources", "code_interpreter_call.outputs", "file_search_call.results"]
    assert "warnings" not in post(server, RESPONSES, include=every)
    assert post(server, RESPONSES, input="")["status"] == "completed"


@pytest.mark.parametrize(
    ("extra", "level", "said"),
    [
        ({"reasoning_effort": "high"}, "high", False),
        ({"reasoning_effort": "minimal"}, "low", True),
        ({"reasoning_effort": "none"}, "low", True),
        ({"reasoning_effort": "xhigh"}, "high", True),
        ({"reasoning_effort": "max"}, "high", True),
        ({"reasoning_effort": "ultra"}, "high", True),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, "low", False),
        ({"think": "high"}, "high", False),
        ({"think": False}, "low", True),
        ({"thinking": {"type": "disabled"}}, "low", True),
        ({"reasoning": {"effort": "low"}}, "low", False),
        ({"reasoning": {"enabled": False}}, "low", True),
        ({"reasoning_effort": None, "chat_template_kwargs": {"enable_thinking": True}}, "medium", False),
        ({"reasoning": {"effort": "low"}, "chat_template_kwargs": {"reasoning_effort": "high"}}, "low", False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_effort_however_it_is_spelled(server: Served, path: str, extra: dict[str, Any], level: str, said: bool) -> None:
    answer, line = post_and_log(server, path, **extra)
    assert f"Reasoning: {level}" in line["prompt"]
    assert any("gpt-oss knows low, medium and high" in text for text in answer.get("warnings", ())) == said


@pytest.mark.parametrize(
    ("path", "extra", "param", "words"),
    [
        (CHAT, {"tool_choice": "any"}, "tool_choice", "none, auto, required"),
        (CHAT, {"tool_choice": 1}, "tool_choice", "none, auto, required"),
        (CHAT, {"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        (CHAT, {"n": 0}, "n", "greater than or equal to 1"),
        (CHAT, {"n": 17}, "n", "(expected 1 to 16: send the request again for more choices / got 17)"),
        (CHAT, {"temperature": "warm"}, "temperature", '(got "warm")'),
        (CHAT, {"stop": 3}, "stop", "a list of at most 16"),
        (CHAT, {"tools": {"a": 1}}, "tools", "got dict of 1"),
        (RESPONSES, {"input": []}, "input", "send input, or previous_response_id"),
        (RESPONSES, {"input": 1}, "input", "a text, or a list of items"),
        (CHAT, {"max_tokens": -2}, "max_tokens", "-1 for no limit"),
        (CHAT, {"max_completion_tokens": "10"}, "max_completion_tokens", "integer"),
        (CHAT, {"options": 1}, "options", "object"),
        (CHAT, {"think": 3}, "think", "effort"),
        (CHAT, {"modalities": ["audio"]}, "modalities[0]", "text only"),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "x", "thinking": 1}, {"role": "user", "content": "x"}]},
            "messages[0].thinking",
            "str",
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": None}}},
            "response_format.json_schema.schema",
            "dict",
        ),
        (CHAT, {"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage", "boolean"),
        (RESPONSES, {"conversation": "c"}, "conversation", "previous_response_id"),
        (RESPONSES, {"prompt": {"id": "p"}}, "prompt", "instructions"),
        (RESPONSES, {"include": "all"}, "include", "list of strings"),
    ],
)
def test_refusals_say_what_and_what_to_do(
    server: Served, path: str, extra: dict[str, Any], param: str, words: str
) -> None:
    answer = server.http.post(path, json=START[path] | extra)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and words in error["message"], error


def test_hidden_reasoning(tmp_path: Path) -> None:
    from helpers.outputs import ids_of

    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    (tmp_path / "outputs").write_text(json.dumps(ids_of(said)) + "\n")
    with Served("helpers.serve_fakes:Scripted=outputs", tmp_path, "--model", "m") as server:
        for extra in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}, {"reasoning_format": "hidden"}):
            message = post(server, CHAT, **extra)["choices"][0]["message"]
            assert (message["content"], message["reasoning"]) == ("Yes.", None)
            streamed = server.http.post(CHAT, json=START[CHAT] | extra | {"stream": True}).text
            assert "hm" not in streamed and "Yes" in streamed and streamed.endswith("data: [DONE]\n\n")
        assert post(server, CHAT)["choices"][0]["message"]["reasoning"] == "hm"


def test_functions_of_old_are_tools(server: Served) -> None:
    answer, line = post_and_log(server, CHAT, functions=[FUNCTION], function_call={"name": "f"})
    assert "type f = " in line["prompt"]
    assert [text.split(":")[0] for text in answer["warnings"]][:2] == ["functions", "function_call"]


def test_a_json_object_with_a_schema_keeps_to_it(server: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    answer, line = post_and_log(server, CHAT, response_format={"type": "json_object", "schema": schema})
    assert "does not keep to the schema" in answer["warnings"][0]
    assert json.dumps(schema, separators=(",", ":")) in line["prompt"]
