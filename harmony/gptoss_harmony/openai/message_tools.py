"""The tools of Anthropic's Messages API as functions, which is what gpt-oss knows.

A tool with an `input_schema` is a function. Of the typed ones, those that the client runs become functions with the
arguments that its runner takes; those that only the API's own servers run are left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Json
from gptoss_harmony.openai.requests import read_optional

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_EDIT: dict[str, Json] = {
    "path": _TEXT,
    "view_range": {"type": "array", "items": _NUMBER},
    "file_text": _TEXT,
    "old_str": _TEXT,
    "new_str": _TEXT,
    "insert_line": _NUMBER,
    "insert_text": _TEXT,
}
"""What a command on a file takes, beside the command."""


def _declare(name: str, description: str, required: Sequence[str], **properties: Json) -> Json:
    schema = {"type": "object", "properties": properties, "required": [*required]}
    return {"type": "function", "name": name, "description": description, "parameters": schema}


_RUN_BY_CLIENTS = {
    "bash": _declare(
        "bash",
        "Run a command in a shell that stays open between calls.",
        (),
        command=_TEXT,
        restart={"type": "boolean"},
    ),
    "text_editor": _declare(
        "str_replace_based_edit_tool",
        "View, create and edit files.",
        ("command", "path"),
        command={"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
        **_EDIT,
    ),
    "memory": _declare(
        "memory",
        "Keep notes in files under /memories.",
        ("command",),
        command={"type": "string", "enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
        **_EDIT,
        old_path=_TEXT,
        new_path=_TEXT,
    ),
}
"""By the type without its date, as in ``bash_20250124``."""


def read_message_tools(tools: Any) -> tuple[list[Json], list[str]]:
    """(function tools as `ToolTable` takes them, warnings about those left out). Raises LayoutError."""
    functions = []
    warnings = []
    for i, tool in enumerate(expect([] if tools is None else tools, list, "tools")):
        found = _read_tool(expect(tool, dict, f"tools[{i}]"), f"tools[{i}]")
        if found is None:
            kind = str(tool.get("type"))[:100]
            warnings.append(
                f"tools[{i}]: {kind!r} is left out: this server cannot run it, and gpt-oss does not know it"
            )
        else:
            functions.append(found)
    if len({tool["name"] for tool in functions}) < len(functions):
        raise LayoutError("tools", "Tool names must be unique.")
    return functions, warnings


def _read_tool(tool: Mapping[str, Any], where: str) -> Json | None:
    kind = read_optional(tool, "type", str, where)
    if kind not in (None, "custom") and "input_schema" not in tool:
        known = _RUN_BY_CLIENTS.get(kind.rpartition("_")[0])
        return known and known | {"name": read_optional(tool, "name", str, where) or known["name"]}
    if "input_schema" not in tool:
        raise LayoutError(f"{where}.input_schema", "Field required")
    return {
        "type": "function",
        "name": expect(tool.get("name"), str, f"{where}.name"),
        "description": read_optional(tool, "description", str, where),
        "parameters": expect(tool["input_schema"], dict, f"{where}.input_schema"),
    }


def read_message_choice(choice: Any) -> tuple[Any, bool]:
    """(the choice in the spelling of `choose_tools`, whether several calls are allowed). Raises LayoutError."""
    if choice is None:
        return None, True
    kind = expect(choice, dict, "tool_choice").get("type")
    parallel = read_optional(choice, "disable_parallel_tool_use", bool, "tool_choice") is not True
    plain = {"auto": "auto", "any": "required", "none": "none"}
    if kind == "tool":
        return {"type": "function", "name": expect(choice.get("name"), str, "tool_choice.name")}, parallel
    if kind not in plain:
        raise LayoutError("tool_choice.type", f"unknown choice (expected auto, any, tool or none / got {kind!r})")
    return plain[str(kind)], parallel
