"""The items of a Responses request as Harmony messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Json, Message, Role, Text
from gptoss_harmony.openai.calls import CallLedger, Restore
from gptoss_harmony.openai.requests import join_parts, make_result, read_optional, read_parts, split_thoughts
from gptoss_harmony.openai.tool_calls import CALL_TYPES, OUTPUT_TYPES, unspell_call
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, FINAL

INSTRUCTING = ("system", "developer")
_LISTS = ("mcp_list_tools", "additional_tools")
_PART_TYPES = (None, "text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text")
ITEM_TYPES = ("message", "reasoning", "function_call", *CALL_TYPES, *OUTPUT_TYPES, *_LISTS, "item_reference")
"""Types of items that are read here."""


def read_kind(item: Any, where: str) -> str:
    """The type of an item; one with a role and no type is a message."""
    kind = expect(item, dict, where).get("type", "message" if "role" in item else None)
    if kind == "message":
        expect(item.get("role"), str, f"{where}.role")
    return str(kind)


class ItemCollector:
    """Collects the items after the leading instructions; `by_id` resolves item references."""

    def __init__(self, tools: ToolTable, by_id: Mapping[str, Json], restore: Restore | None = None) -> None:
        self.messages: list[Message] = []
        self._tools = tools
        self._by_id = by_id
        self._restore = restore
        self._calls = CallLedger()
        self._call_of_item: dict[str, str] = {}  # the results of some types name the item, not the call

    def add(self, item: Json, where: str) -> None:
        kind = read_kind(item, where)
        if kind == "item_reference" and (found := self._by_id.get(read_optional(item, "id", str, where) or "")):
            item = found
            kind = read_kind(item, where)
        if kind == "item_reference":
            raise LayoutError(f"{where}.id", f"no earlier item has this id (got {item.get('id')!r})")
        if kind in CALL_TYPES:
            self._typed_call(item, CALL_TYPES[kind], where)
        elif kind in OUTPUT_TYPES:
            self._result(item, OUTPUT_TYPES[kind], where)
        elif kind in _LISTS:
            return  # what they say is in the tools of the request
        else:
            add = {"message": self._message, "reasoning": self._reasoning, "function_call": self._call}.get(kind)
            if add is None:
                known = ", ".join(ITEM_TYPES)
                raise LayoutError(f"{where}.type", f"unknown item (expected one of {known} / got {kind!r})")
            add(item, where)

    def _message(self, item: Json, where: str) -> None:
        role = item["role"]
        content = item.get("content")
        if role == "assistant":
            thoughts, content = split_thoughts(content, f"{where}.content")
            if thoughts:
                self.messages.append(Message.assistant(thoughts, ANALYSIS))
            if thoughts and not content:
                return
        parts = read_parts(content, f"{where}.content")
        if role == "user":
            self.messages.append(Message(Role.USER, [*parts]))
        elif role == "assistant":
            channel = COMMENTARY if item.get("phase") == "commentary" else FINAL
            self.messages.append(Message(Role.ASSISTANT, [*parts], channel=channel))
        elif role in INSTRUCTING:
            self.messages.append(Message.developer(join_parts(parts)))
        else:
            raise LayoutError(
                f"{where}.role", f"unknown role (expected user, assistant, system or developer / got {role!r})"
            )

    def _reasoning(self, item: Json, where: str) -> None:
        text = join_parts(read_parts(item.get("content"), f"{where}.content"))
        text = text or "\n".join(part.text for part in read_parts(item.get("summary"), f"{where}.summary"))
        if text:
            self.messages.append(Message.assistant(text, ANALYSIS))

    def _call(self, item: Json, where: str) -> None:
        name = expect(item.get("name"), str, f"{where}.name")
        call_id = expect(item.get("call_id"), str, f"{where}.call_id")
        space = read_optional(item, "namespace", str, where)
        self._add_call(self._tools.call(name, expect(item.get("arguments"), str, f"{where}.arguments"), space), call_id)

    def _typed_call(self, item: Json, kind: str, where: str) -> None:
        """A call in the form of its tool's type."""
        name, space = self._tools.find_kind(kind).name, None
        if kind in ("custom", "mcp"):
            name = expect(item.get("name"), str, f"{where}.name")
            space = read_optional(item, "server_label" if kind == "mcp" else "namespace", str, where)
        message = self._tools.call(name, unspell_call(item, kind), space, kind)
        ident = read_optional(item, "id", str, where) or ""
        call_id = read_optional(item, "call_id", str, where) or ident
        self._call_of_item[ident] = call_id
        message = self._add_call(message, call_id)
        if kind == "mcp" and (output := item.get("output") or item.get("error")):
            parts = [Text(output if isinstance(output, str) else json.dumps(output, ensure_ascii=False))]
            self.messages.append(make_result(message.recipient or "", parts))

    def _add_call(self, message: Message, call_id: str) -> Message:
        message = self._restore(message, call_id) if self._restore else message
        self._calls.add(call_id, message.recipient or "")
        self.messages.append(message)
        return message

    def _result(self, item: Json, field: str, where: str) -> None:
        name = item.get("name")  # not in the API, but some clients send it
        named = self._tools.recipient(name) if isinstance(name, str) and name else None
        ident = read_optional(item, "call_id", str, where) or read_optional(item, "id", str, where) or ""
        call_id = self._call_of_item.get(ident, ident)
        recipient = self._calls.take(ident, named) or self._calls.take(call_id, named) or named
        if recipient is None:
            raise LayoutError(f"{where}.call_id", f"no call before it has this id (got {item.get('call_id')!r})")
        self.messages.append(make_result(recipient, _read_output(item.get(field), f"{where}.{field}")))


def _read_output(value: Any, where: str) -> list[Text]:
    """A result: a text, parts of text, or what a tool of a type of its own gives (commands' outputs, tools found)."""
    parts = value if isinstance(value, list) else []
    # A shell's outputs have neither a type nor a text.
    kinds = [part.get("type", "output" if "outcome" in part else None) for part in parts if isinstance(part, dict)]
    odd = isinstance(value, dict) or any(kind not in _PART_TYPES for kind in kinds)
    if odd and not any(str(kind).startswith("input_") for kind in kinds):  # what the model cannot read is refused
        return [Text(json.dumps(value, ensure_ascii=False))]
    return read_parts(value, where)
