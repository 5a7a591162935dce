"""Regular languages as rules for the inside of a JSON string.

An expression becomes a deterministic automaton, and each of its states a rule that ends in the next one. JSON has one
spelling for each character here, and a ``|`` after a ``<`` is written as its escape, so that no text can spell the name
of a control token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from gptoss_harmony.grammars.gbnf_rules import quote

LAST = 0x10FFFF
Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Code points as sorted, separate ranges, both ends included."""
EVERY: Ranges = ((0, 0xD7FF), (0xE000, LAST))  # halves of surrogates are no characters
_MOST_PARTS = 20_000
_MOST_STATES = 2_000
_MOST_WORK = 400_000  # comparisons of characters, some tenths of a second


class NotEnforced(ValueError):
    """A grammar that has no rules here; the text says why."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of `ranges`."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Joined:
    """One after the other."""

    parts: tuple[Regular, ...]


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Regular, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """`low` times to `high` times; None is no limit."""

    part: Regular
    low: int
    high: int | None


Regular: TypeAlias = Chars | Joined | Either | Repeated


def spell_text(text: str) -> Joined:
    """Exactly this text."""
    return Joined(tuple(Chars(((ord(char), ord(char)),)) for char in text))


def unite(*sets: Ranges) -> Ranges:
    out: list[tuple[int, int]] = []
    for low, high in sorted(pair for one in sets for pair in one):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def exclude(first: Ranges, second: Ranges) -> Ranges:
    """What is in the first and not in the second."""
    out: list[tuple[int, int]] = []
    for low, high in first:
        for cut_low, cut_high in second:
            if cut_high < low or cut_low > high:
                continue
            if cut_low > low:
                out.append((low, cut_low - 1))
            low = cut_high + 1
        if low <= high:
            out.append((low, high))
    return tuple(out)


class Automaton:
    """Deterministic: `moves` of each state are (characters, next state); state 0 is the first. `accepting`: states in
    which the text may end. Raises NotEnforced where it grows too large, or has no text at all.
    """

    def __init__(self, regular: Regular) -> None:
        self._moves: list[list[tuple[Ranges, int]]] = []  # of the parts, which are not deterministic
        self._jumps: list[list[int]] = []
        first = self._new()
        last = self._build(regular, first)
        self.moves: list[list[tuple[Ranges, int]]] = []
        self.accepting: set[int] = set()
        self._work = 0
        self._determine(first, last)
        if not self.accepting:
            raise NotEnforced("no text keeps to it")

    @property
    def nullable(self) -> bool:
        return 0 in self.accepting

    @property
    def may_end_open(self) -> bool:
        """Can the text end with a ``<``?"""
        return any(to in self.accepting and _holds(chars, "<") for moves in self.moves for chars, to in moves)

    def _new(self) -> int:
        if len(self._moves) >= _MOST_PARTS:
            raise NotEnforced(f"it is too large (more than {_MOST_PARTS} parts)")
        self._moves.append([])
        self._jumps.append([])
        return len(self._moves) - 1

    def _build(self, node: Regular, start: int) -> int:
        """Adds the parts of `node` after `start`; returns where it ends."""
        if isinstance(node, Chars):
            end = self._new()
            self._moves[start].append((node.ranges, end))
            return end
        if isinstance(node, Joined):
            for part in node.parts:
                start = self._build(part, start)
            return start
        end = self._new()
        if isinstance(node, Either):
            for part in node.parts:
                self._jumps[self._build(part, self._branch(start))].append(end)
            return end
        for _ in range(node.low):
            start = self._build(node.part, start)
        if node.high is None:
            loop = self._branch(start)
            self._jumps[self._build(node.part, loop)].append(loop)
            self._jumps[loop].append(end)
            return end
        for _ in range(node.high - node.low):
            self._jumps[start].append(end)
            start = self._build(node.part, start)
        self._jumps[start].append(end)
        return end

    def _branch(self, start: int) -> int:
        """A part of its own after `start`, so that what loops or ends there cannot be entered from elsewhere."""
        new = self._new()
        self._jumps[start].append(new)
        return new

    def _follow(self, parts: Iterator[int]) -> frozenset[int]:
        found: set[int] = set()
        waiting = list(parts)
        while waiting:
            part = waiting.pop()
            if part not in found:
                found.add(part)
                waiting += self._jumps[part]
        return frozenset(part for part in found if self._moves[part] or not self._jumps[part])

    def _determine(self, first: int, last: int) -> None:
        begin = self._follow(iter([first]))
        number = {begin: 0}
        waiting = [begin]
        while waiting:
            parts = waiting.pop()
            while len(self.moves) < len(number):
                self.moves.append([])
            if last in parts:
                self.accepting.add(number[parts])
            for chars, reached in self._split([move for part in parts for move in self._moves[part]]):
                target = self._follow(iter(reached))
                if target not in number:
                    if len(number) >= _MOST_STATES:
                        raise NotEnforced(f"it is too large (more than {_MOST_STATES} states)")
                    number[target] = len(number)
                    waiting.append(target)
                self.moves[number[parts]].append((chars, number[target]))
        while len(self.moves) < len(number):
            self.moves.append([])
        self._drop_dead_ends()

    def _split(self, moves: list[tuple[Ranges, int]]) -> Iterator[tuple[Ranges, frozenset[int]]]:
        """The moves with their characters parted, so that each character has one set of targets."""
        edges = sorted({edge for ranges, _ in moves for low, high in ranges for edge in (low, high + 1)})
        self._work += len(edges) * len(moves)
        if self._work > _MOST_WORK:
            raise NotEnforced("it is too large (its texts can go on in too many ways at once)")
        by_target: dict[frozenset[int], list[tuple[int, int]]] = {}
        for low, after in pairwise(edges):
            targets = frozenset(to for ranges, to in moves if any(a <= low <= b for a, b in ranges))
            if targets:
                by_target.setdefault(targets, []).append((low, after - 1))
        for targets, ranges in by_target.items():
            yield unite(tuple(ranges)), targets

    def _drop_dead_ends(self) -> None:
        """Moves from where no text can end any more."""
        before: list[list[int]] = [[] for _ in self.moves]
        for state, moves in enumerate(self.moves):
            for _, to in moves:
                before[to].append(state)
        alive: set[int] = set()
        waiting = [*self.accepting]
        while waiting:
            state = waiting.pop()
            if state not in alive:
                alive.add(state)
                waiting += before[state]
        self.moves = [[(chars, to) for chars, to in moves if to in alive] for moves in self.moves]


def write_rules(automaton: Automaton, name: str, after_open: bool) -> dict[str, str]:
    """GBNF rules of the texts as they stand inside a JSON string; the first is `name`. `after_open`: a ``<`` may stand
    before the text.
    """
    rules: dict[str, str] = {}
    waiting = [(0, after_open)]

    def refer(state: int, is_open: bool) -> str:
        """What follows a character that leads to `state`."""
        if not automaton.moves[state]:
            return ""
        waiting.append((state, is_open))
        return _name_rule(name, state, is_open, after_open)

    while waiting:
        state, is_open = waiting.pop()
        rule = _name_rule(name, state, is_open, after_open)
        if rule in rules:
            continue
        rules[rule] = ""
        ways = [
            f"{piece} {refer(to, piece_open)}".strip()
            for chars, to in automaton.moves[state]
            for piece, piece_open in _write_pieces(chars, is_open)
        ]
        rules[rule] = " | ".join([*ways, '""'] if state in automaton.accepting else ways)
    return rules


def _name_rule(name: str, state: int, is_open: bool, after_open: bool) -> str:
    if (state, is_open) == (0, after_open):
        return name
    return f"{name}-{state}{'x' if is_open else ''}"


_SPECIAL: Ranges = unite(((0, 31),), *(((ord(char), ord(char)),) for char in '"\\<'))
_BAR: Ranges = ((ord("|"), ord("|")),)


def _write_pieces(chars: Ranges, is_open: bool) -> Iterator[tuple[str, bool]]:
    """(GBNF of some of the characters, does it end with a plain ``<``?), until all are there."""
    plain = exclude(chars, unite(_SPECIAL, _BAR) if is_open else _SPECIAL)
    if plain:
        yield _write_class(plain), False
    if is_open and _holds(chars, "|"):
        yield quote("\\u007c"), False
    if _holds(chars, "<"):
        yield '"<"', True
    if escapes := _write_escapes(
        [chr(c) for low, high in _SPECIAL for c in range(low, high + 1) if _holds(chars, chr(c))]
    ):
        yield escapes, False


def _write_escapes(chars: list[str]) -> str:
    """One of the characters that stand in JSON with a backslash only; few ways, for engines follow each of them."""
    spelled = [json.dumps(char)[1:-1] for char in chars if char != "<"]
    ends: dict[str, list[str]] = {}
    for text in spelled:
        ends.setdefault(text[1:-1], []).append(text[-1])
    ways = [f"{quote(head)} " * bool(head) + _write_class(_list_chars(last)) for head, last in ends.items()]
    return f"{quote(chr(92))} ({' | '.join(ways)})" if ways else ""


def _list_chars(chars: list[str]) -> Ranges:
    return unite(tuple((ord(char), ord(char)) for char in chars))


def _holds(chars: Ranges, char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in chars)


def _write_class(chars: Ranges) -> str:
    if len(chars) == 1 and chars[0][0] == chars[0][1]:
        return quote(chr(chars[0][0]))
    negated = chars[-1][1] == LAST
    shown = exclude(((0, LAST),), chars) if negated else chars
    if negated and not shown:
        shown = ((0xD800, 0xDFFF),)
    body = "".join(
        _write_code(low) if low == high else f"{_write_code(low)}-{_write_code(high)}" for low, high in shown
    )
    return f"[{'^' if negated else ''}{body}]"


def _write_code(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    # Not as \xNN: xgrammar takes as many digits after that as there are.
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
