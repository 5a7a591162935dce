"""What the streams of the three APIs share: ids go in, the API's events come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from gptoss_harmony.messages import Json
from gptoss_harmony.openai.output import Item, Reader
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.parsing.events import Event
from gptoss_harmony.parsing.parser import Parser


class AnswerStream(ABC):
    """`feed` ids as they come, then `finish` once. Once `stopped` is True, nothing more is needed of the engine."""

    def __init__(self, table: ToolTable, parallel: bool, stops: Sequence[str], may_call: bool) -> None:
        self.parser = Parser("assistant", tools=table.namespaces())
        self._reader = Reader(table, parallel, stops, may_call)

    @property
    def stopped(self) -> bool:
        return self._reader.stopped

    @property
    def calls(self) -> list[Item]:
        return self._reader.calls

    @property
    def undeclared(self) -> list[str]:
        """Tools that the model called and nobody declared."""
        return self._reader.undeclared

    @property
    def uncalled(self) -> list[str]:
        """Tools that the model called and could not: the bodies of the calls became content."""
        return self._reader.uncalled

    @property
    def in_answer(self) -> bool:
        """Is text that the API shows as content being written?"""
        return self._reader.in_answer

    def feed(self, ids: Sequence[int]) -> list[Json]:
        """The API's events for new token ids; [] while a header or half a character is under way."""
        return self._write(self.parser.feed(ids), truncated=False)

    def feed_text(self, text: str) -> list[Json]:
        """The same for engines that give text in which control tokens stand as their names."""
        return self._write(self.parser.feed_text(text), truncated=False)

    @abstractmethod
    def finish(self, finish_reason: str | None = None, usage: Json | None = None) -> list[Json]:
        """The last events. `finish_reason`: the engine's, ``stop`` or ``length``, or None."""

    @abstractmethod
    def _write(self, events: Iterable[Event], truncated: bool) -> list[Json]:
        """The API's events for those of the parser."""
