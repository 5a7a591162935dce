"""Headers that a model may write, held to token by token: nothing but headers costs anything, and bodies stay free.

A grammar over a whole answer slows each of its tokens, and takes from free text what would spell a control token. Here
only what stands between ``<|start|>`` and ``<|message|>`` is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from gptoss_harmony.grammars.grammar import Turn, list_calls, list_passages, split_specials
from gptoss_harmony.tokens import FIRST_SPECIAL, MESSAGE, SPECIAL_TOKENS, START
from gptoss_harmony.vocabulary import load_vocabulary

_ROLE = "assistant"
_CALL_CHANNELS = ("commentary", "analysis")
"""What gpt-oss calls functions on; the second is a habit that costs nothing."""
_JSON_TYPES = ("", " <|constrain|>json", "<|constrain|>json", " json")
_CALL_TYPES = (*_JSON_TYPES, " code")
_Node: TypeAlias = dict[int, Any]
"""What may follow, by its byte or, of control tokens, its id."""


def list_headers(turn: Turn) -> list[str]:
    """All that may stand between ``<|start|>assistant`` and the text, control tokens by their names."""
    heads = [f"<|channel|>{channel}" for channel in list_passages(turn)]
    heads += [f"<|channel|>final{kind}" for kind in _JSON_TYPES if turn.final is not None]
    for recipient in {call.recipient: None for call in list_calls(turn)}:
        for channel in _CALL_CHANNELS:
            sections = (f" to={recipient}<|channel|>{channel}", f"<|channel|>{channel} to={recipient}")
            heads += [f"{section}{kind}" for section in sections for kind in _CALL_TYPES]
    return [f"{head}<|message|>" for head in heads]


class HeaderGuard:
    """Follows an answer that begins after ``<|start|>assistant``: `allows` a token, then `accept` it."""

    def __init__(self, headers: Sequence[str]) -> None:
        first, self._later = _build(tuple(headers))
        self._node: _Node | None = first  # None: in a text

    def allows(self, token: int) -> bool:
        return self._node is None or _follow(self._node, token) is not None

    def accept(self, token: int) -> None:
        if token == START:
            self._node = self._later
        elif self._node is not None:
            self._node = None if token == MESSAGE else _follow(self._node, token)

    def list_allowed(self) -> list[int]:
        """All tokens that are allowed now; only while a header is written."""
        assert self._node is not None
        known = _token_of_bytes()
        found = []
        waiting: list[tuple[_Node, bytes]] = [(self._node, b"")]
        while waiting:
            node, before = waiting.pop()
            for symbol, after in node.items():
                if symbol < FIRST_SPECIAL:
                    text = before + bytes([symbol])
                    waiting.append((after, text))
                    found += [known[text]] if text in known else []
                elif not before:
                    found.append(symbol)
        return found


@lru_cache(16)  # requests of one client have the same tools
def _build(headers: tuple[str, ...]) -> tuple[_Node, _Node]:
    """What may follow at the beginning, and after a ``<|start|>``."""
    first: _Node = {}
    later: _Node = {}
    for header in headers:
        _add(first, _list_symbols(header))
    last = _add(later, _ROLE.encode())
    last |= first
    return first, later


def _add(node: _Node, symbols: Iterable[int]) -> _Node:
    for symbol in symbols:
        node = node.setdefault(symbol, {})
    return node


def _list_symbols(header: str) -> Iterator[int]:
    for piece, special in split_specials(header):
        yield from [SPECIAL_TOKENS[piece]] if special else piece.encode()


def _follow(node: _Node, token: int) -> _Node | None:
    """Where a token leads to; None if it stands in no header here."""
    symbols: Sequence[int] = [token] if token >= FIRST_SPECIAL else load_vocabulary().token_bytes[token]
    for symbol in symbols:
        found = node.get(symbol)
        if found is None:
            return None
        node = found
    return node


@lru_cache(1)
def _token_of_bytes() -> dict[bytes, int]:
    return {data: token for token, data in enumerate(load_vocabulary().token_bytes) if token < FIRST_SPECIAL}
