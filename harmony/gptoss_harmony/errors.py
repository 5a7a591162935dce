"""Errors of gptoss_harmony. One line each: what is wrong, expected / got, what to do."""

from __future__ import annotations


class HarmonyError(RuntimeError):
    """Anything that gptoss_harmony refuses. `code` names the case for programs, e.g. ``"expected_start"``."""

    def __init__(self, what: str, code: str = "harmony") -> None:
        super().__init__(what)
        self.code = code


class RenderError(HarmonyError):
    """A conversation that has no rendering: a tool message without a name, system content in a user message."""


class ParseError(HarmonyError):
    """A token stream that is not Harmony; raised by the strict parser only."""


class DecodeError(HarmonyError):
    """Ids outside the vocabulary, or bytes that are not UTF-8 where the caller asked for strict decoding."""


class LayoutError(HarmonyError, ValueError):
    """JSON that is not a conversation: `where` is the path to the bad value, e.g. ``messages[2].content[0]``."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}" if where else what, code="layout")
        self.where = where
