"""The tool types of OpenAI's APIs that a client runs, as functions that gpt-oss can call.

``function`` is one already. A ``namespace`` (MCP servers, sub-agents) is a Harmony namespace, ``custom`` a function of
one text; ``local_shell``, ``shell``, ``apply_patch`` and ``tool_search`` get the schemas of their calls, and ``mcp``
those that its server has listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_harmony.grammars.inputs import InputGrammar
from gptoss_harmony.json_reading import expect, expect_or_none
from gptoss_harmony.messages import Json


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool by its API's words: `kind` is the type of the tool, `name` within `namespace` if it stands in one."""

    name: str
    namespace: str | None = None
    kind: str = "function"


@dataclass(frozen=True, slots=True)
class Spec:
    """A declared tool with what the model is shown of it. `grammar`: of a custom tool's input."""

    declared: Declared
    description: str
    parameters: Json | None
    grammar: InputGrammar | None = None


def _describe_object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_TEXTS = {"type": "array", "items": _TEXT}
_OPERATIONS = ["create_file", "update_file", "delete_file"]
_FIXED: dict[str, tuple[str, Json]] = {
    "local_shell": (
        "Runs a command on the user's machine.",
        _describe_object(("command",), command=_TEXTS, working_directory=_TEXT, timeout_ms=_NUMBER),
    ),
    "shell": (
        "Runs shell commands, one after the other.",
        _describe_object(("commands",), commands=_TEXTS, timeout_ms=_NUMBER, max_output_length=_NUMBER),
    ),
    "apply_patch": (
        "Creates, updates or deletes a file. The diff is in V4A form; a deletion has none.",
        _describe_object(("type", "path"), type={"type": "string", "enum": _OPERATIONS}, path=_TEXT, diff=_TEXT),
    ),
    "tool_search": ("Finds tools for a task.", _describe_object(("query",), query=_TEXT)),
}
TOOL_TYPES = ("function", "namespace", "custom", "mcp", *_FIXED)
"""Tool types that are read here."""


def read_tool(tool: Mapping[str, Any], where: str) -> Iterator[Spec]:
    """The functions that a tool of one of `TOOL_TYPES` is. Raises LayoutError with the path of a bad value."""
    kind = tool.get("type", "function")
    if kind == "namespace":
        yield from _read_namespace(tool, where)
    elif kind == "mcp":
        yield from _read_mcp(tool, where)
    elif kind in _FIXED:
        text, schema = _FIXED[kind]
        shown = kind == "tool_search"  # the client may say more about its own search
        description = _read(tool, "description", str, where) if shown else None
        parameters = _read(tool, "parameters", dict, where) if shown else None
        yield Spec(Declared(kind, kind=kind), description or text, parameters or schema)
    else:
        yield _read_named(tool, kind, where)


def _read_named(tool: Mapping[str, Any], kind: str, where: str, namespace: str | None = None) -> Spec:
    """A function or custom tool; Chat Completions nests what it says under its type, Responses does not."""
    spec = _read(tool, kind, dict, where) or tool
    where = where if spec is tool else f"{where}.{kind}"
    name = expect(spec.get("name"), str, f"{where}.name")
    description = _read(spec, "description", str, where) or ""
    if kind == "custom":
        grammar = _read_grammar(_read(spec, "format", dict, where) or {}, f"{where}.format")
        if grammar:
            description += f"\nThe input keeps to this {grammar.syntax} grammar:\n{grammar.definition}"
        return Spec(Declared(name, namespace, kind), description, _describe_object(("input",), input=_TEXT), grammar)
    return Spec(Declared(name, namespace), description, _read(spec, "parameters", dict, where))


def _read_grammar(given: Mapping[str, Any], where: str) -> InputGrammar | None:
    """Chat Completions nests the grammar in its format, Responses does not."""
    inner = _read(given, "grammar", dict, where)
    where = where if inner is None else f"{where}.grammar"
    found = given if inner is None else inner
    definition = _read(found, "definition", str, where)
    return InputGrammar(_read(found, "syntax", str, where) or "lark", definition) if definition else None


def _read_namespace(tool: Mapping[str, Any], where: str) -> Iterator[Spec]:
    space = expect(tool.get("name"), str, f"{where}.name")
    for i, inner in enumerate(_read(tool, "tools", list, where) or ()):
        place = f"{where}.tools[{i}]"
        kind = expect(inner, dict, place).get("type", "function")
        if kind in ("function", "custom"):
            yield _read_named(inner, kind, place, space)


def _read_mcp(tool: Mapping[str, Any], where: str) -> Iterator[Spec]:
    """`tools` as an ``mcp_list_tools`` item has them."""
    label = expect(tool.get("server_label"), str, f"{where}.server_label")
    for i, inner in enumerate(_read(tool, "tools", list, where) or ()):
        place = f"{where}.tools[{i}]"
        name = expect(expect(inner, dict, place).get("name"), str, f"{place}.name")
        description = _read(inner, "description", str, place) or ""
        yield Spec(Declared(name, label, "mcp"), description, _read(inner, "input_schema", dict, place))


def _read(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    return expect_or_none(data.get(key), kind, f"{where}.{key}")
