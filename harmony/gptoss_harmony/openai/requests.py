"""What Chat Completions and Responses requests have in common: effort, instructions, response formats, choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.grammar import Final
from gptoss_harmony.json_reading import expect, expect_or_none
from gptoss_harmony.messages import (
    Conversation,
    DeveloperContent,
    Json,
    Message,
    ReasoningEffort,
    SystemContent,
    Text,
)
from gptoss_harmony.openai.tool_table import Choice, ToolTable, find_builtin
from gptoss_harmony.rendering.policies import drop_documented
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY

_EFFORTS = {
    "none": ReasoningEffort.LOW,
    "minimal": ReasoningEffort.LOW,
    "low": ReasoningEffort.LOW,
    "medium": ReasoningEffort.MEDIUM,
    "high": ReasoningEffort.HIGH,
    "xhigh": ReasoningEffort.HIGH,
    "max": ReasoningEffort.HIGH,
    "ultra": ReasoningEffort.HIGH,
}
"""gpt-oss knows three efforts. ``none`` also closes the analysis before it starts, see `skip_reasoning`."""

_THOUGHTS = frozenset({"reasoning", "reasoning_text", "thinking"})
"""Types of content parts that are a chain of thought, never an answer."""


def read_optional(data: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
    """`data[key]` or None, or a LayoutError if it is neither absent, null nor a `kind`."""
    value = data.get(key)
    path = f"{where}.{key}" if where else key
    return expect_or_none(value, kind, path)


def read_effort(value: str | None, where: str) -> ReasoningEffort:
    """gpt-oss' effort for an API effort; None means medium."""
    if value is None:
        return ReasoningEffort.MEDIUM
    if value not in _EFFORTS:
        raise LayoutError(where, f"unknown effort (expected one of {', '.join(_EFFORTS)} / got {value!r})")
    return _EFFORTS[value]


def skip_reasoning() -> Message:
    """An empty chain of thought: with it before the model's turn, the model goes straight to its answer."""
    return Message.assistant("", ANALYSIS)


def read_parts(content: Any, where: str) -> list[Text]:
    """Text of an API content: a string, a list of text-like parts, or None (no parts)."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    return [_read_part(part, f"{where}[{i}]") for i, part in enumerate(expect(content, list, where))]


def split_thoughts(content: Any, where: str) -> tuple[str, Any]:
    """(reasoning, the rest) of an assistant message's content: some clients send reasoning as one of its parts."""
    if not isinstance(content, list):
        return "", content
    thoughts = []
    rest = []
    for i, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in _THOUGHTS:
            found = next((part[key] for key in ("text", "thinking", "reasoning") if part.get(key) is not None), "")
            thoughts.append(expect(found, str, f"{where}[{i}].text"))
        else:
            rest.append(part)
    return "\n".join(thoughts), rest


def _read_part(part: Any, where: str) -> Text:
    if isinstance(part, str):
        return Text(part)
    for key in ("text", "refusal"):
        if isinstance(expect(part, dict, where).get(key), str):
            return Text(part[key])
    raise LayoutError(where, f"gpt-oss reads text only (expected a text part / got type {part.get('type')!r})")


def make_result(recipient: str, parts: Sequence[Text]) -> Message:
    """What the tool `recipient` gave back, on the channel of its call."""
    builtin = recipient == "python" or recipient.startswith("browser.")
    channel = ANALYSIS if builtin else COMMENTARY
    return Message.tool(recipient, join_parts(parts), channel=channel)


def join_parts(parts: Sequence[Text]) -> str:
    return "".join(part.text for part in parts)


def read_response_format(spec: Mapping[str, Any] | None, where: str) -> tuple[Json | None, str | None]:
    """(JSON schema, prompt section) of a response format; (None, None) for plain text.

    `spec` is ``{"type": "text" | "json_object" | "json_schema", ...}``, with name, schema and description either
    beside the type (Responses) or under ``json_schema`` (Chat Completions). The section is the format document's.
    """
    kind = "text" if spec is None else spec.get("type")
    if kind == "text":
        return None, None
    assert spec is not None
    if kind == "json_object":
        schema = read_optional(spec, "schema", dict, where)  # llama.cpp's addition
        return _write_section("json_object", "Answer with one JSON object.", schema or {"type": "object"})
    if kind != "json_schema":
        raise LayoutError(f"{where}.type", f"unknown format (expected text, json_object or json_schema / got {kind!r})")
    body = read_optional(spec, "json_schema", dict, where) or spec
    where = where if body is spec else f"{where}.json_schema"
    name, description = (read_optional(body, key, str, where) for key in ("name", "description"))
    return _write_section(
        name or "response", description or "", expect(body.get("schema", {}), dict, f"{where}.schema")
    )


def _write_section(name: str, description: str, schema: Json) -> tuple[Json, str]:
    comment = "".join(f"// {line}\n" for line in description.splitlines())
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return schema, f"# Response Formats\n\n## {name}\n\n{comment}{text}"


def open_conversation(
    effort: ReasoningEffort, date: str | None, tools: ToolTable, texts: Sequence[str | None]
) -> list[Message]:
    """System message, and the developer message with the instructions `texts` and the functions if there are any."""
    system = SystemContent(reasoning_effort=effort, conversation_start_date=date, tools=tools.builtins or None)
    instructions = "\n\n".join(text for text in texts if text is not None)
    functions = tools.namespaces(builtins=False) or None
    messages = [Message.system(system)]
    if instructions or functions:
        messages.append(Message.developer(DeveloperContent(instructions or None, functions)))
    return messages


def drop_finished_reasoning(messages: Sequence[Message]) -> Conversation:
    """Drops what stands on the analysis channel before the last final answer, as the format document asks."""
    return Conversation([m for m, kept in zip(messages, drop_documented(messages), strict=True) if kept])


def choose_tools(table: ToolTable, choice: Any, where: str = "tool_choice") -> tuple[ToolTable, bool]:
    """(tools that the model may call, whether it must call one) under an API tool_choice, in either API's spelling."""
    if choice in (None, "auto"):
        return table, False
    if choice == "none":
        return table.only(()), False
    if choice == "required":
        return _check_callable(table, repr(choice), where), True
    if isinstance(choice, str):
        raise LayoutError(where, f"unknown choice (expected none, auto, required or an object / got {choice!r:.100})")
    chosen, must_call = _read_choices(expect(choice, dict, where), where)
    part = table.only(chosen)
    shown = repr([one.name for one in chosen])
    return _check_callable(part, shown, where) if must_call else part, must_call


def _read_choices(choice: Mapping[str, Any], where: str) -> tuple[list[Choice], bool]:
    """(the tools chosen, whether one must be called) of a choice that is an object."""
    body = read_optional(choice, "allowed_tools", dict, where) or choice
    if choice.get("type") != "allowed_tools":
        return [_read_choice(choice, where)], True
    tools = read_optional(body, "tools", list, where) or ()
    return [_read_choice(expect(tool, dict, where), where) for tool in tools], body.get("mode") == "required"


def _check_callable(tools: ToolTable, shown: str, where: str) -> ToolTable:
    """`tools`, or a LayoutError if there are none."""
    if not tools:
        raise LayoutError(where, f"no tool to call (expected one of the declared tools / got {shown})")
    return tools


def choose_final(schema: Json | None, must_call: bool) -> Final:
    """What the final answer may be: none beside a call that is demanded, JSON of the schema, or text."""
    if must_call:
        return None
    return "text" if schema is None else schema


def _read_choice(choice: Mapping[str, Any], where: str) -> Choice:
    kind = str(choice.get("type"))
    if kind in ("function", "custom", "namespace"):
        spec = read_optional(choice, kind, dict, where) or choice
        return Choice(expect(spec.get("name"), str, f"{where}.name"), kind)
    if kind == "mcp":
        return Choice(read_optional(choice, "name", str, where) or str(choice.get("server_label")), kind)
    return Choice(find_builtin(kind), kind)
