"""An output item in the spelling of the Responses API."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

from gptoss_harmony.messages import Json
from gptoss_harmony.openai.output import Item, ItemKind, make_id
from gptoss_harmony.openai.tool_calls import ID_PREFIXES, spell_call
from gptoss_harmony.openai.tool_types import Declared

Summarise: TypeAlias = Callable[[str], str]
"""Makes the summary of a chain of thought."""
Seal: TypeAlias = Callable[[str], str]
"""Encrypts a chain of thought for a client that keeps it."""


class ResponseItem:
    """One output item in the API's spelling: empty, growing, and whole."""

    def __init__(self, item: Item, summarise: Summarise | None, seal: Seal | None = None) -> None:
        self.item = item
        self._summarise = summarise
        self._seal = seal
        self.declared = item.declared or Declared(item.name)
        prefixes = {ItemKind.REASONING: "rs", ItemKind.CALL: ID_PREFIXES[self.declared.kind]}
        self.id = make_id(prefixes.get(item.kind, "msg"))

    def part(self, text: str) -> Json:
        """The one content part of a reasoning item or a message."""
        if self.item.kind is ItemKind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    @cached_property
    def summary(self) -> str | None:
        """Of the whole chain of thought, so not before the item is complete."""
        return self._summarise(self.item.text) if self._summarise and self.item.kind is ItemKind.REASONING else None

    def empty(self) -> Json:
        return self._spell("in_progress", "", [], [])

    def whole(self) -> Json:
        summaries = [] if self.summary is None else [{"type": "summary_text", "text": self.summary}]
        text = self.item.text
        whole = self._spell("completed" if self.item.complete else "incomplete", text, [self.part(text)], summaries)
        if self._seal and self.item.kind is ItemKind.REASONING:
            whole["encrypted_content"] = self._seal(text)
        return whole

    def _spell(self, status: str, text: str, content: list[Json], summaries: list[Json]) -> Json:
        if self.item.kind is ItemKind.CALL:
            return spell_call(self.declared, text, self.id, self.item.call_id, status)
        if self.item.kind is ItemKind.REASONING:
            return {"id": self.id, "type": "reasoning", "status": status, "summary": summaries, "content": content}
        phase = "commentary" if self.item.kind is ItemKind.PREAMBLE else "final_answer"
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "phase": phase,
            "content": content,
        }
