"""The prompt that Ollama makes of an /api/chat request with our Go template, without Ollama and without Go.

What Ollama does before the template runs is done here too: neighbours of one role are merged, tool schemas and
arguments lose what its API types do not keep. What the template cannot do, or does otherwise than
`gptoss_harmony.render`:

- the prompt is a text, tokenised with special tokens on: text in a message that looks like one becomes one;
- the properties of a tool come in alphabetical order; their titles, defaults, examples, oneOf and nullable are lost,
  and so
  is the description of the parameters as a whole: Ollama drops them;
- below a property, objects in objects are `any`, and the properties of an object are all shown as optional;
- the arguments of calls in the history are written anew, compact and with sorted keys; their numbers are 64-bit
  floats, so whole ones beyond 2^53 are rounded;
- `-`, `.` and spaces in a tool's name are underscores: Ollama lists it so, and the template says so in the history;
- tools named `python` and `browser.search`, `.open`, `.find` always mean the built-in ones; a function tool
  without a schema has `()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date as Date
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_converters.ollama.go_execute import execute
from gptoss_converters.ollama.go_nodes import Template, TemplateError
from gptoss_converters.ollama.go_parser import parse
from gptoss_converters.ollama.go_values import Struct, to_json

BUILTIN_NAMES = frozenset({"python", "browser.search", "browser.open", "browser.find"})
_RENAMED = str.maketrans(" -.", "___")
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
    return execute(_parse_template(), make_values(request), make_functions(date))


def make_functions(date: str) -> dict[str, Callable[..., Any]]:
    """Ollama's own functions on the day `date`, but toTypeScriptType."""
    before = Date.fromisoformat(date) - timedelta(days=1)
    return {
        "json": lambda value: to_json(value).encode(),
        "currentDate": lambda *_: date.encode(),
        "yesterdayDate": lambda *_: before.isoformat().encode(),
    }


def rename_tool(name: str) -> str:
    """A tool's name as Ollama's harmony parser lists it: the three characters that TypeScript takes in no name become
    underscores; the built-in tools keep theirs.
    """
    return name if name in BUILTIN_NAMES else name.translate(_RENAMED)


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
        Images=[],
        ToolCalls=[_make_call(c) for c in raw.get("tool_calls") or []],
        ToolName=raw.get("tool_name") or "",
        ToolCallID=raw.get("tool_call_id") or "",
    )


def _make_call(raw: Mapping[str, Any]) -> Struct:
    function = raw["function"]
    arguments = function.get("arguments")
    inner = Struct(Index=0, Name=function["name"], Arguments=None if arguments is None else _read_numbers(arguments))
    return Struct(ID=raw.get("id") or "", Function=inner)


def _read_numbers(value: Any) -> Any:
    """Go reads every number of a JSON without a type as 64 bits of float, whole ones too. Raises TemplateError for one
    that has no such float.
    """
    if isinstance(value, dict):
        return {key: _read_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_numbers(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise TemplateError("a number is out of the range of 64-bit floats", 1) from None
    return value


def _make_tool(raw: Mapping[str, Any]) -> Struct:
    function = raw["function"]
    schema = function.get("parameters") or {}
    parameters = Struct(
        Type=schema.get("type") or "",
        Defs=schema.get("$defs"),
        Items=schema.get("items"),
        Required=list(schema.get("required") or []),
        Properties={name: _make_property(p) for name, p in (schema.get("properties") or {}).items()},
    )
    name = rename_tool(function["name"])
    return Struct(
        Type=raw.get("type") or "",
        Items=raw.get("items"),
        Function=Struct(Name=name, Description=function.get("description") or "", Parameters=parameters),
    )


def _make_property(raw: Mapping[str, Any]) -> Struct:
    kind = raw.get("type")
    inner = raw.get("properties")
    return Struct(
        AnyOf=[_make_property(p) for p in raw.get("anyOf") or []],
        Type=[kind] if isinstance(kind, str) else list(kind or []),
        Items=_read_numbers(raw.get("items")),
        Enum=_read_numbers(list(raw.get("enum") or [])),
        Description=raw.get("description") or "",
        Properties=None if inner is None else Struct(ToMap={name: _make_property(p) for name, p in inner.items()}),
    )
