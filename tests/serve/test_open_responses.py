"""The rules of Open Responses' compliance tests over HTTP, but for pictures, and how answers end whatever happens."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from helpers.open_responses import ENDS, TABLE, check_events, check_response, read_events
from helpers.outputs import ids_of
from helpers.serve_inside import Said, ask_app

from gptoss_adapters.backends import Token
from gptoss_adapters.backends.protocol import BackendFailed, StopReason

PATH = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWER = f"{THOUGHT}<|channel|>final<|message|>Hello there, you.<|return|>"
CALL = (
    f"{THOUGHT}<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "San Francisco"}<|call|>'
)


def message(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


CASES: dict[str, tuple[dict[str, Any], str, str]] = {  # name: request, what the model says, an item of the output
    "basic text": ({"input": [message("user", "Say hello in three words.")]}, ANSWER, "message"),
    "system prompt": (
        {"input": [message("system", "You are a pirate."), message("user", "Say hello.")]},
        ANSWER,
        "message",
    ),
    "tool calling": ({"input": [message("user", "Weather?")], "tools": [WEATHER]}, CALL, "function_call"),
    "multi-turn": (
        {"input": [message("user", "I am Al."), message("assistant", "Hello, Al."), message("user", "Who am I?")]},
        ANSWER,
        "message",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_and_streamed(name: str) -> None:
    request, said, kind = CASES[name]
    whole, streamed = ask_app([(PATH, request), (PATH, request | {"stream": True})], said)
    assert whole[0] == streamed[0] == 200
    check_response(whole[1])
    assert whole[1]["status"] == "completed" and kind in [item["type"] for item in whole[1]["output"]]
    events = read_events(streamed[1])
    check_events(events)
    assert events[-1]["type"] == "response.completed"
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == ("Hello there, you." if kind == "message" else "")


def test_values_in_force_are_told() -> None:
    given = {
        "input": "x",
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "auto"},
        "truncation": "auto",
        "store": False,
        "user": "u",
    }
    answer = ask_app([(PATH, given)], ANSWER)[0][1]
    check_response(answer)
    del given["input"]
    given["text"] = {"verbosity": "low", "format": {"type": "text"}}
    assert {key: answer[key] for key in given} == given
    plain = ask_app([(PATH, {"input": "x"})], ANSWER)[0][1]
    in_force = {"temperature": 1.0, "top_p": 1.0, "truncation": "disabled", "tool_choice": "auto", "store": True}
    assert {key: plain[key] for key in in_force} == in_force
    assert plain["reasoning"] == {"effort": "medium", "summary": None}


class Breaks(Said):
    """Breaks after `n` tokens in its own way."""

    def __init__(self, how: Exception | int, n: int) -> None:
        super().__init__(ANSWER)
        self._how = how
        self._n = n

    def stream(self, tokens: Sequence[int], **_: Any) -> Generator[Token, None, StopReason]:
        yield from (Token(i, None) for i in ids_of(ANSWER)[: self._n])
        if isinstance(self._how, Exception):
            raise self._how
        yield Token(self._how, None)
        return "stop"


@pytest.mark.parametrize("n", [0, 2, 8, 12])
@pytest.mark.parametrize(
    "how", [BackendFailed("it is gone"), RuntimeError("what?"), 10**9, -1], ids=["fails", "raises", "large", "negative"]
)
def test_a_stream_never_just_breaks(how: Exception | int, n: int) -> None:
    backend = Breaks(how, n)
    (status, streamed), (failed, whole) = ask_app(
        [(PATH, {"input": "x", "stream": True}), (PATH, {"input": "x"})], backend=backend
    )
    assert status == 200
    events = read_events(streamed)
    check_events(events)
    if how == 10**9:  # a token that nobody knows is a sign that stands for it
        assert failed == 200
        return
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert failed in (500, 503) and whole["error"]["message"]
    said = [item["content"][0]["text"] for item in events[-1]["response"]["output"]]
    assert said == {0: [], 2: [], 8: ["Hm."], 12: ["Hm.", "Hello"]}[n]


@pytest.mark.parametrize("limit", range(1, 16))
def test_what_is_cut_off_is_incomplete(limit: int) -> None:
    for said in (ANSWER, CALL):
        backend = Said(said)
        backend.limited = True
        request = {"input": "x", "tools": [WEATHER], "max_output_tokens": limit, "stream": True}
        events = read_events(ask_app([(PATH, request)], backend=backend)[0][1])
        check_events(events)
        assert events[-1]["type"] == "response.incomplete"
        assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_the_table_sees_what_is_missing() -> None:
    good = ask_app([(PATH, {"input": "x", "tools": [WEATHER]})], CALL)[0][1]
    check_response(good)
    for name in TABLE["response"]:
        with pytest.raises(AssertionError, match=name):
            check_response({key: value for key, value in good.items() if key != name})
    for path, value in (("usage", {}), ("output", [{}]), ("temperature", None), ("tools", [{"type": "function"}])):
        with pytest.raises(AssertionError):
            check_response(copy.deepcopy(good) | {path: value})
    assert set(ENDS) == {"response.completed", "response.incomplete", "response.failed"}
