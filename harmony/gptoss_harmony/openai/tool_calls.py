"""Calls of tools as items of the Responses API, each in the form of its tool's type, and read back from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptoss_harmony.messages import Json
from gptoss_harmony.openai.tool_types import Declared

ID_PREFIXES = {
    "function": "fc",
    "custom": "ctc",
    "local_shell": "lsh",
    "shell": "sh",
    "apply_patch": "apc",
    "tool_search": "tsc",
    "mcp": "mcp",
}
OUTPUT_TYPES = {
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "tool_search_output": "tools",
}
"""Types of items that are results -> where the result stands."""
CALL_TYPES = {
    "custom_tool_call": "custom",
    "local_shell_call": "local_shell",
    "shell_call": "shell",
    "apply_patch_call": "apply_patch",
    "tool_search_call": "tool_search",
    "mcp_call": "mcp",
}
"""Types of items that are calls -> the tool type. Calls of functions are read apart."""


def spell_call(declared: Declared, text: str, ident: str, call_id: str, status: str) -> Json:
    """The item of a call with the arguments `text`; what a type has no form for (half of a JSON object) is left out."""
    kind = declared.kind
    space = {} if declared.namespace is None else {"namespace": declared.namespace}
    if kind == "function":
        named = {"name": declared.name, "arguments": text}
        return {"id": ident, "status": status, "type": "function_call", "call_id": call_id, **named, **space}
    if kind == "custom":
        named = {"name": declared.name, "input": read_input(text)}
        return {"id": ident, "status": status, "type": "custom_tool_call", "call_id": call_id, **named, **space}
    if kind == "mcp":
        named = {"name": declared.name, "server_label": declared.namespace or "", "arguments": text}
        return {"id": ident, "type": "mcp_call", "status": status, **named, "output": None, "error": None}
    given = _read_arguments(text)
    base = {"id": ident, "call_id": call_id, "status": status}
    if kind == "local_shell":
        return base | {"type": "local_shell_call", "action": _spell_local_shell(given)}
    if kind == "shell":
        action = {"commands": _read_texts(given.get("commands", given.get("command")))}
        limits = {key: _read_whole(given.get(key)) for key in ("timeout_ms", "max_output_length")}
        return base | {"type": "shell_call", "action": action | limits}
    if kind == "apply_patch":
        status = "in_progress" if status == "in_progress" else "completed"
        return base | {"type": "apply_patch_call", "status": status, "operation": _spell_operation(given)}
    return base | {"type": "tool_search_call", "execution": "client", "arguments": given}


def respell_call(declared: Declared, text: str) -> str:
    """The arguments `text` as they come back from a client that repeats the call in its type's form."""
    return (
        text
        if declared.kind in ("function", "mcp")
        else unspell_call(spell_call(declared, text, "", "", ""), declared.kind)
    )


def read_input(text: str) -> str:
    """The text that a custom tool is called with: the model writes it as JSON, or forgets to."""
    try:
        value = json.loads(text)["input"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "" if text.strip() in ("", "{}") else text
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unspell_call(item: Mapping[str, Any], kind: str) -> str:
    """The arguments of a call that comes back as history; the opposite of `spell_call`."""
    if kind == "custom":
        return _dump({"input": item.get("input") if isinstance(item.get("input"), str) else ""})
    value = item.get({"apply_patch": "operation", "tool_search": "arguments", "mcp": "arguments"}.get(kind, "action"))
    if isinstance(value, str):
        return value
    given = value if isinstance(value, dict) else {}
    if kind == "local_shell":
        given = {key: value for key, value in given.items() if key != "type" and value not in (None, {})}
    return _dump({key: value for key, value in given.items() if value is not None})


def _spell_local_shell(given: Json) -> Json:
    folder = given.get("working_directory", given.get("workdir"))
    command = given.get("command")
    asked = {
        "timeout_ms": _read_whole(given.get("timeout_ms")),
        "working_directory": folder if isinstance(folder, str) else None,
    }
    return {
        "type": "exec",
        "command": ["bash", "-lc", command] if isinstance(command, str) else _read_texts(command),
        "env": {},
        # What was not asked for is left out: the AI SDK refuses a null here.
        **{name: value for name, value in asked.items() if value is not None},
    }


def _spell_operation(given: Json) -> Json:
    kind = given.get("type")
    if kind not in ("create_file", "update_file", "delete_file"):
        kind = "update_file"
    operation = {"type": kind, "path": str(given.get("path", ""))}
    return operation if kind == "delete_file" else operation | {"diff": str(given.get("diff", ""))}


def _read_arguments(text: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [part if isinstance(part, str) else json.dumps(part) for part in value]
    return [value] if isinstance(value, str) else []


def _read_whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
