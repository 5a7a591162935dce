"""Chat Completions, as messages to compare and as a client puts a stream together. Not a test module."""

from __future__ import annotations

import itertools
import json
from typing import Any

from gptoss_harmony import Message
from gptoss_harmony.messages import DeveloperContent, SystemContent
from gptoss_harmony.openai.chat_completions import ChatStream, to_conversation
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

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
