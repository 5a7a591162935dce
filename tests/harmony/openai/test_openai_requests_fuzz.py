"""Requests with anything in any place: a conversation that renders, or a LayoutError that names the place. Nothing
else.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gptoss_harmony import Conversation, LayoutError, render_text
from gptoss_harmony.grammars.grammar import Turn, gbnf, structural_tag
from gptoss_harmony.openai import chat_completions, responses

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "minLength": 1},
        "b": {"type": "array", "items": {"enum": [1, None]}, "maxItems": 2},
        "c": {"anyOf": [{"$ref": "#/$defs/d"}]},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"d": {"type": "integer", "minimum": 1}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "t"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "again"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}},
        {"type": "python"},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    },
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "schema": SCHEMA}},
    "reasoning_effort": "low",
    "reasoning": {"effort": "high"},
}
RESPONSES: dict[str, Any] = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"type": "message", "role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "r"}], "content": None},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "t"}]},
        {"type": "item_reference", "id": "rs_1"},
    ],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}, {"type": "web_search"}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "reasoning": {"effort": "low", "summary": "auto"},
}
JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    2.5,
    "",
    "x",
    "<|end|>",
    "\ud800",
    [],
    [None],
    [[]],
    ["x"],
    {},
    {"type": "function"},
    {"x": {}},
    {"type": []},
    10**30,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def replaced(request: dict[str, Any], path: tuple[Any, ...], junk: Any) -> dict[str, Any]:
    request = copy.deepcopy(request)
    holder: Any = request
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = copy.deepcopy(junk)
    return request


def use(to_conversation: Callable[[Any], Conversation], turn: Callable[[Any], Turn], request: dict[str, Any]) -> None:
    for step in (
        lambda: render_text(to_conversation(request)),
        lambda: gbnf(turn(request)),
        lambda: structural_tag(turn(request), bound=9),
    ):
        try:
            step()
        except LayoutError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("api", "request_"), [(chat_completions, CHAT), (responses, RESPONSES)], ids=["chat", "responses"]
)
def test_any_junk_in_any_place(api: Any, request_: dict[str, Any]) -> None:
    use(api.to_conversation, api.to_turn, request_)
    for path in places(request_):
        for junk in JUNK if path else ():
            use(api.to_conversation, api.to_turn, replaced(request_, path, junk))


@pytest.mark.parametrize(
    ("api", "request_"), [(chat_completions, CHAT), (responses, RESPONSES)], ids=["chat", "responses"]
)
def test_much_junk(api: Any, request_: dict[str, Any]) -> None:
    rng = random.Random(4)
    for _ in range(300):
        request = request_
        for _ in range(rng.randrange(2, 6)):
            request = replaced(request, rng.choice([path for path in places(request) if path]), rng.choice(JUNK))
        use(api.to_conversation, api.to_turn, request)


def test_the_responses_object_echoes_only_what_was_asked() -> None:
    for junk in JUNK:
        for key in ("reasoning", "tools", "metadata"):
            responses.to_response(
                {"input": "x", key: junk} if isinstance(junk, dict | None) and key == "reasoning" else {"input": "x"},
                "m",
                1,
            )
