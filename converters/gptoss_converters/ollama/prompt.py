"""The prompt that Ollama makes of an /api/chat request with our Go template, without Ollama and without Go.

What Ollama does before the template runs is done here too: neighbours of one role are merged, tool schemas and
arguments lose what its API types do not keep. What the template cannot do, or does otherwise than
`gptoss_harmony.render`:

- the prompt is a text, tokenised with special tokens on: text in a message that looks like one becomes one;
- the properties of a tool come in alphabetical order; their titles, defaults, examples, oneOf and nullable are lost,
  and so
  is the description of the parameters as a whole: Ollama drops them;
- below a property, objects in objects are `any`, and the properties of an object are all shown as optional;
- the arguments of calls in the history are written anew, compact and with sorted keys;
- tools named `python` and `browser.*` always mean the built-in ones; a function tool without a schema has `()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_converters.ollama.go_execute import Struct, execute, to_json
from gptoss_converters.ollama.go_nodes import Template
from gptoss_converters.ollama.go_parser import parse

TEMPLATE = Path(__file__).parents[1] / "data" / "harmony.gotmpl"


def read_harmony_template() -> str:
    """The text of our template, for a Modelfile's TEMPLATE."""
    return TEMPLATE.read_text("utf-8")


@cache
def _parse_template() -> Template:
    return parse(read_harmony_template())


def make_prompt(request: Mapping[str, Any], date: str) -> str:
    """The text for `messages`, `tools` and `think` of a chat request on the day `date` (YYYY-MM-DD). Raises
    TemplateError.
    """
    return execute(
        _parse_template(),
        make_values(request),
        {"json": lambda v: to_json(v).encode(), "currentDate": lambda: date.encode()},
    )


def make_values(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees: System, Messages, Tools, Think, ThinkLevel, IsThinkSet, Response."""
    messages = request.get("messages") or []
    think = request.get("think")
    return {
        "System": "\n\n".join(m.get("content") or "" for m in messages if m["role"] == "system"),
        "Messages": _merge([_make_message(m) for m in messages]),
        "Tools": [_make_tool(t) for t in request.get("tools") or []],
        "Response": "",
        "Think": think not in (None, False),
        "ThinkLevel": _choose_level(think),
        "IsThinkSet": think is not None,
    }


def _choose_level(think: Any) -> str:
    if isinstance(think, str):
        return think
    return "medium" if think else ""


def _merge(messages: Sequence[Struct]) -> list[Struct]:
    """Ollama joins neighbours of one role, except tool results; only the first one's thinking and calls are kept."""
    merged: list[Struct] = []
    for message in messages:
        if merged and merged[-1]["Role"] == message["Role"] != "tool":
            merged[-1]["Content"] += "\n\n" + message["Content"]
        else:
            merged.append(message)
    return merged


def _make_message(raw: Mapping[str, Any]) -> Struct:
    return Struct(
        Role=raw["role"],
        Content=raw.get("content") or "",
        Thinking=raw.get("thinking") or "",
        ToolCalls=[_make_call(c) for c in raw.get("tool_calls") or []],
        ToolName=raw.get("tool_name") or "",
        ToolCallID=raw.get("tool_call_id") or "",
    )


def _make_call(raw: Mapping[str, Any]) -> Struct:
    function = raw["function"]
    return Struct(
        ID=raw.get("id") or "", Function=Struct(Name=function["name"], Arguments=dict(function.get("arguments") or {}))
    )


def _make_tool(raw: Mapping[str, Any]) -> Struct:
    function = raw["function"]
    schema = function.get("parameters") or {}
    parameters = Struct(
        Type=schema.get("type") or "",
        Required=list(schema.get("required") or []),
        Properties={name: _make_property(p) for name, p in (schema.get("properties") or {}).items()},
    )
    return Struct(
        Function=Struct(Name=function["name"], Description=function.get("description") or "", Parameters=parameters)
    )


def _make_property(raw: Mapping[str, Any]) -> Struct:
    kind = raw.get("type")
    inner = raw.get("properties")
    return Struct(
        Type=[kind] if isinstance(kind, str) else list(kind or []),
        Items=raw.get("items"),
        Enum=list(raw.get("enum") or []),
        Description=raw.get("description") or "",
        Properties=None if inner is None else Struct(ToMap={name: _make_property(p) for name, p in inner.items()}),
    )
