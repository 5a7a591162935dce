"""Anthropic's Messages API: requests to conversations.

How things map, beyond what `chat_completions` says:

- `system`, and system messages, are the application's instructions: Harmony's developer message.
- a thinking block is the analysis of its turn, if its signature says that it is unchanged. Text is a preamble on
  commentary where the same message also calls a tool, else a final answer.
- `thinking` decides the effort where `output_config.effort` does not: disabled leaves the analysis empty, a budget
  below 4096 tokens is low, one from 16384 high.
- an answer cannot be begun by the caller (prefill): the API's error for models without it.
- what gpt-oss cannot read: an image or a PDF in a tool's result becomes a text that says so, elsewhere it is refused;
  what a tool of the API's own servers said is left out. `MessagesRequest.warnings` names both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.grammar import Turn
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Conversation, Json, Message, Role, Text
from gptoss_harmony.openai.calls import CallLedger, Restore
from gptoss_harmony.openai.message_tools import read_message_choice, read_message_tools
from gptoss_harmony.openai.requests import (
    choose_final,
    choose_tools,
    drop_finished_reasoning,
    make_result,
    open_conversation,
    read_effort,
    read_optional,
    read_response_format,
    skip_reasoning,
)
from gptoss_harmony.openai.thinking import read_thinking
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, FINAL

_LOW_BUDGET = 4096  # thinking tokens
_HIGH_BUDGET = 16384
_BILLING = "x-anthropic-billing-header:"  # Claude Code's first system block: of no use here, and new in every request
_SERVER_BLOCKS = ("server_tool_use", "mcp_tool_use", "mcp_tool_result", "container_upload", "fallback", "compaction")


class MessagesRequest:
    """What a request comes to.

    `tools`: its functions, as `ToolTable` takes them. `may_call`: may the model call one. `parallel`: several in one
    turn. `hides_thinking`: thinking blocks are wanted without their text. `warnings`: what is not done as asked.
    Raises LayoutError, whose `where` is the path of the bad value.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self.tools, self.warnings = read_message_tools(request.get("tools"))
        self.table = ToolTable(self.tools)
        self._choice, self.parallel = read_message_choice(request.get("tool_choice"))
        self.may_call = bool(self.tools) and self._choice != "none"
        self._thinking = read_optional(request, "thinking", dict) or {}
        self.hides_thinking = self._thinking.get("display") == "omitted"
        self._output = read_optional(request, "output_config", dict) or {}
        self._effort = self._read_effort()
        form = self._output.get("format") or request.get("output_format")
        self._schema, self._section = read_response_format(
            None if form is None else expect(form, dict, "output_config.format"), "output_config.format"
        )

    def _read_effort(self) -> str | None:
        effort: str | None = read_optional(self._output, "effort", str, "output_config")
        kind = self._thinking.get("type", "adaptive")
        if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
            raise LayoutError("thinking.type", f"expected enabled, disabled or adaptive (got {kind!r})")
        if kind == "disabled":
            return "none"
        if kind != "enabled":
            return effort
        budget = expect(self._thinking.get("budget_tokens"), int, "thinking.enabled.budget_tokens")
        if budget < 1024:
            raise LayoutError("thinking.enabled.budget_tokens", "Input should be greater than or equal to 1024")
        if effort or _LOW_BUDGET <= budget < _HIGH_BUDGET:
            return effort
        return "low" if budget < _LOW_BUDGET else "high"

    def to_turn(self) -> Turn:
        """What the model may answer, for `grammar.gbnf` and `grammar.structural_tag`."""
        tools, must_call = choose_tools(self.table, self._choice)
        final = choose_final(self._schema, must_call)
        return Turn(tuple(tools.functions), (), final, reasoning=self._effort != "none")

    def to_conversation(self, date: str | None = None, restore: Restore | None = None) -> Conversation:
        """The conversation to render; `date` (YYYY-MM-DD) is shown to the model as today's. `restore` gives a call in
        the form in which the model wrote it (`WrittenCalls.restore`).
        """
        messages = expect(self._request.get("messages"), list, "messages")
        if not messages:
            raise LayoutError("messages", "at least one message is required")
        body = _BlockCollector(self.table, self.warnings, restore)
        for i, message in enumerate(messages):
            body.add(expect(message, dict, f"messages[{i}]"), f"messages[{i}]")
        if messages[-1]["role"] == "assistant":
            said = (
                "This model does not support assistant message prefill. The conversation must end with a user message."
            )
            raise LayoutError("", said)
        offered = self.table if self.may_call else self.table.only(())
        start = open_conversation(read_effort(self._effort, "effort"), date, offered, [self._system(), self._section])
        conversation = drop_finished_reasoning([*start, *body.messages])
        if self._effort == "none":
            conversation.messages.append(skip_reasoning())
        return conversation

    def _system(self) -> str | None:
        system = self._request.get("system")
        if system is None or isinstance(system, str):
            return system
        blocks = [_read_text(block, f"system[{i}]") for i, block in enumerate(expect(system, list, "system"))]
        texts = [text for text in blocks if not text.startswith(_BILLING)]
        return "\n\n".join(texts) if texts else None


class _BlockCollector:
    """Collects the messages of a conversation, block by block, and remembers whom each call was addressed to."""

    def __init__(self, tools: ToolTable, warnings: list[str], restore: Restore | None) -> None:
        self.messages: list[Message] = []
        self._tools = tools
        self._restore = restore
        self._warnings = warnings
        self._calls = CallLedger()
        self._readers: dict[str, dict[str, Callable[[Json, str], None]]] = {
            "user": {
                "tool_result": self._add_result,
                **dict.fromkeys(("text", "document", "search_result", "image"), self._add_words),
            },
            "assistant": {
                "text": self._add_text,
                "thinking": self._add_thinking,
                "redacted_thinking": _refuse_redacted,
                "tool_use": self._add_call,
            },
        }
        self._channel = FINAL
        self._words: list[str] = []

    def add(self, message: Json, where: str) -> None:
        role = message.get("role")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        blocks = expect(blocks, list, f"{where}.content")
        if not content:
            raise LayoutError(where, "all messages must have non-empty content")
        if role == "system":
            texts = [_read_text(block, f"{where}.content[{i}]") for i, block in enumerate(blocks)]
            self.messages.append(Message.developer("\n\n".join(texts)))
            return
        if role not in ("user", "assistant"):
            raise LayoutError(f"{where}.role", f"expected user or assistant (got {role!r})")
        calls = any(isinstance(block, dict) and block.get("type") == "tool_use" for block in blocks)
        self._channel = COMMENTARY if calls else FINAL
        for i, block in enumerate(blocks):
            self._add_block(str(role), expect(block, dict, f"{where}.content[{i}]"), f"{where}.content[{i}]")
        self._end_words()

    def _add_block(self, role: str, block: Json, where: str) -> None:
        kind = block.get("type")
        read = self._readers[role].get(str(kind))
        if read:
            read(block, where)
        elif isinstance(kind, str) and (kind in _SERVER_BLOCKS or kind.endswith("_tool_result")):
            self._warnings.append(f"{where}: {kind[:100]!r} is left out: it belongs to a tool that this server lacks")
        else:
            known = ", ".join(repr(name) for name in self._readers[role])
            said = f"Input tag {kind!r} found using 'type' does not match any of the expected tags: {known}"
            raise LayoutError(where, said)

    def _add_words(self, block: Json, where: str) -> None:
        """Blocks of a user's turn that stand next to each other are one message."""
        self._words.append(_read_words(block, where))

    def _end_words(self) -> None:
        if self._words:
            self.messages.append(Message(Role.USER, [Text("\n".join(self._words))]))
        self._words = []

    def _add_text(self, block: Json, where: str) -> None:
        if text := _read_text(block, where):
            self.messages.append(Message.assistant(text, self._channel))

    def _add_thinking(self, block: Json, where: str) -> None:
        for key in ("thinking", "signature"):
            if key not in block:
                raise LayoutError(f"{where}.thinking.{key}", "Field required")
        text = expect(block["thinking"], str, f"{where}.thinking.thinking")
        found = read_thinking(text, expect(block["signature"], str, f"{where}.thinking.signature"))
        if found is None:
            raise LayoutError(where, "Invalid `signature` in `thinking` block")
        self.messages.append(Message.assistant(found, ANALYSIS))

    def _add_call(self, block: Json, where: str) -> None:
        ident = expect(block.get("id"), str, f"{where}.tool_use.id")
        name = expect(block.get("name"), str, f"{where}.tool_use.name")
        given = expect(block.get("input"), dict, f"{where}.tool_use.input")
        message = self._tools.call(name, json.dumps(given, ensure_ascii=False, separators=(",", ":")))
        message = self._restore(message, ident) if self._restore else message
        self._calls.add(ident, message.recipient or "")
        self.messages.append(message)

    def _add_result(self, block: Json, where: str) -> None:
        ident = expect(block.get("tool_use_id"), str, f"{where}.tool_result.tool_use_id")
        recipient = self._calls.take(ident)
        if recipient is None:
            said = f"unexpected `tool_use_id` found in `tool_result` blocks: {ident}. "
            raise LayoutError(
                where, said + "Each `tool_result` block must have a corresponding `tool_use` block before it"
            )
        text = self._read_result(block.get("content"), f"{where}.content")
        if block.get("is_error") is True and "error" not in text[:40].lower():
            text = f"Error: {text}"
        self._end_words()
        self.messages.append(make_result(recipient, [Text(text)]))

    def _read_result(self, content: Any, where: str) -> str:
        if content is None or isinstance(content, str):
            return content or ""
        parts = []
        for i, block in enumerate(expect(content, list, where)):
            try:
                parts.append(_read_words(expect(block, dict, f"{where}[{i}]"), f"{where}[{i}]"))
            except _NotText as found:
                parts.append(f"[{found.kind} left out: this model reads text only]")
                self._warnings.append(f"{where}[{i}]: {found.kind} left out: gpt-oss reads text only")
        return "\n".join(parts)


class _NotText(LayoutError):
    """A block that is a picture or a file."""

    def __init__(self, where: str, kind: str) -> None:
        super().__init__(where, f"this model reads text only (got {kind})")
        self.kind = kind


def _read_text(block: Any, where: str) -> str:
    kind = expect(block, dict, where).get("type")
    if kind != "text":
        raise LayoutError(
            where, f"Input tag {kind!r} found using 'type' does not match any of the expected tags: 'text'"
        )
    return expect(block.get("text"), str, f"{where}.text.text")


def _read_words(block: Json, where: str) -> str:
    """The text of a block of a user's turn or a tool's result. Raises LayoutError: `_NotText` for pictures."""
    kind = block.get("type")
    if kind == "document":
        return _read_document(block, where)
    if kind == "search_result":
        head = [expect(block.get(key), str, f"{where}.{key}") for key in ("title", "source")]
        return "\n".join([*head, _read_texts(block.get("content"), f"{where}.content")])
    if kind == "tool_reference":
        return expect(block.get("tool_name"), str, f"{where}.tool_name")
    if kind == "image":
        raise _NotText(where, "an image")
    return _read_text(block, where)


def _read_document(block: Json, where: str) -> str:
    source = expect(block.get("source"), dict, f"{where}.source")
    head = [block[key] for key in ("title", "context") if isinstance(block.get(key), str)]
    if source.get("type") == "text":
        body = expect(source.get("data"), str, f"{where}.source.data")
    elif source.get("type") == "content":
        content = source.get("content")
        body = content if isinstance(content, str) else _read_texts(content, f"{where}.source.content")
    else:
        raise _NotText(where, f"a document of type {str(source.get('media_type') or source.get('type'))[:100]}")
    return "\n".join([*head, body])


def _read_texts(blocks: Any, where: str) -> str:
    return "\n".join(_read_text(block, f"{where}[{i}]") for i, block in enumerate(expect(blocks, list, where)))


def _refuse_redacted(_: Json, where: str) -> None:
    raise LayoutError(where, "Invalid `data` in `redacted_thinking` block")
