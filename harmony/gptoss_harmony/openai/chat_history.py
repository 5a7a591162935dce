"""The messages of a Chat Completions request as Harmony messages."""

from __future__ import annotations

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Json, Message, Role, Text
from gptoss_harmony.openai.calls import CallLedger, Restore
from gptoss_harmony.openai.requests import join_parts, make_result, read_optional, read_parts, split_thoughts
from gptoss_harmony.openai.tool_calls import unspell_call
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, FINAL

INSTRUCTING = ("system", "developer")
REASONING_FIELDS = ("reasoning_content", "reasoning")


class MessageCollector:
    """Collects the messages after the leading instructions, and remembers whom each call was addressed to."""

    def __init__(self, tools: ToolTable, restore: Restore | None = None) -> None:
        self.messages: list[Message] = []
        self._tools = tools
        self._restore = restore
        self._calls = CallLedger()

    def add(self, message: Json, where: str) -> None:
        role = message["role"]
        thoughts = ""
        content = message.get("content")
        if role == "assistant":
            thoughts, content = split_thoughts(content, f"{where}.content")
        parts = read_parts(content, f"{where}.content")
        if role == "user":
            self.messages.append(Message(Role.USER, [*parts]))
        elif role == "assistant":
            self._add_assistant(message, thoughts, parts, where)
        elif role in ("tool", "function"):  # the latter answers the API's `function_call` of 2023
            self.messages.append(make_result(self._tool_of(message, where), parts))
        elif role in INSTRUCTING:
            self.messages.append(Message.developer(join_parts(parts)))
        else:
            raise LayoutError(
                f"{where}.role", f"unknown role (expected system, developer, user, assistant or tool / got {role!r})"
            )

    def _add_assistant(self, message: Json, thoughts: str, parts: list[Text], where: str) -> None:
        given = [read_optional(message, key, str, where) for key in (*REASONING_FIELDS, "thinking")]
        reasoning = next((text for text in given if text), thoughts)
        calls = read_optional(message, "tool_calls", list, where) or []
        old_call = None if calls else read_optional(message, "function_call", dict, where)
        called = bool(calls or old_call)
        if reasoning:
            self.messages.append(Message.assistant(reasoning, ANALYSIS))
        if parts and (join_parts(parts) or not (called or reasoning)):
            self.messages.append(Message(Role.ASSISTANT, [*parts], channel=COMMENTARY if called else FINAL))
        for i, call in enumerate(calls):
            self._add_call(call, f"{where}.tool_calls[{i}]")
        if old_call:
            self._add_function(old_call, "function", "", f"{where}.function_call")

    def _add_call(self, call: Json, where: str) -> None:
        kind = "custom" if expect(call, dict, where).get("type") == "custom" else "function"
        function = expect(call.get(kind), dict, f"{where}.{kind}")
        self._add_function(function, kind, read_optional(call, "id", str, where) or "", f"{where}.{kind}")

    def _add_function(self, function: Json, kind: str, call_id: str, where: str) -> None:
        name = expect(function.get("name"), str, f"{where}.name")
        if kind == "custom":
            arguments = unspell_call(function, kind)
        else:
            arguments = expect(function.get("arguments"), str, f"{where}.arguments")
        space = read_optional(function, "namespace", str, where)
        message = self._tools.call(name, arguments, space, kind)
        message = self._restore(message, call_id) if self._restore else message
        self._calls.add(call_id, message.recipient or "")
        self.messages.append(message)

    def _tool_of(self, message: Json, where: str) -> str:
        name = read_optional(message, "name", str, where)
        named = self._tools.recipient(name) if name else None
        recipient = self._calls.take(read_optional(message, "tool_call_id", str, where) or "", named) or named
        if recipient is None:
            raise LayoutError(
                f"{where}.tool_call_id", f"no call before it has this id (got {message.get('tool_call_id')!r})"
            )
        return recipient
