"""The rules of a Lark grammar as GBNF: what follows what, what begins with itself, and which terminals need care."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gptoss_harmony.grammars.gbnf_rules import repeat
from gptoss_harmony.grammars.regular import Automaton, NotEnforced, Regular, write_rules


@dataclass(frozen=True, slots=True)
class Terminal:
    regular: Regular


@dataclass(frozen=True, slots=True)
class Call:
    """Of another rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Times:
    part: Node
    low: int
    high: int | None


Node: TypeAlias = Terminal | Call | Sequence | Some | Times


def write_grammar(rules: Mapping[str, Node], ignored: tuple[Terminal, ...], name: str) -> dict[str, str]:
    """GBNF rules, those of `start` first and under `name`. Raises NotEnforced."""
    nodes = {rule: _turn_around(rule, node) for rule, node in rules.items()}
    if ignored:
        nodes = _let_stand(nodes, ignored)
    facts = _Facts(nodes)
    facts.check()
    return _Writer(facts, name).write()


def _turn_around(rule: str, node: Node) -> Node:
    """A rule that begins with itself, as a repetition of what follows."""
    ways = node.parts if isinstance(node, Some) else (node,)
    again = [way for way in ways if isinstance(way, Sequence) and way.parts[:1] == (Call(rule),)]
    if not again:
        return node
    first = tuple(way for way in ways if way not in again)
    rest = tuple(Sequence(way.parts[1:]) for way in again if len(way.parts) > 1)
    if not first:
        raise NotEnforced(f"the rule {rule} never ends")
    return Sequence((Some(first), Times(Some(rest), 0, None)))


def _let_stand(nodes: Mapping[str, Node], ignored: tuple[Terminal, ...]) -> dict[str, Node]:
    """With what is ignored after each terminal, and at the beginning."""
    blank = Times(Some(ignored), 0, None)

    def add(node: Node) -> Node:
        if isinstance(node, Terminal):
            return Sequence((node, blank))
        if isinstance(node, Times):
            return Times(add(node.part), node.low, node.high)
        if isinstance(node, Sequence | Some):
            return type(node)(tuple(add(part) for part in node.parts))
        return node

    out = {rule: add(node) for rule, node in nodes.items()}
    begin = f"{next(iter(out))}-"  # no name of Lark's has a hyphen
    return {begin: Sequence((blank, Call(next(iter(out)))))} | out


class _Facts:
    """What is known of the rules: which may be empty, and which terminals may come first, last, and after which."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self.rules = rules
        self.automata = {t: Automaton(t.regular) for node in rules.values() for t in _list_terminals(node)}
        self._empty: set[str] = set()
        self._grow_empty()
        self._ends: dict[tuple[str, bool], set[Terminal]] = {
            (rule, last): set() for rule in rules for last in (False, True)
        }
        self._grow_ends()
        self.after_open: set[Terminal] = set()
        for node in rules.values():
            self._find_neighbours(node)

    def _grow_empty(self) -> None:
        before = -1
        while len(self._empty) > before:
            before = len(self._empty)
            self._empty |= {rule for rule, node in self.rules.items() if self.may_be_empty(node)}

    def may_be_empty(self, node: Node) -> bool:
        if isinstance(node, Terminal):
            return self.automata[node].nullable
        if isinstance(node, Call):
            return node.name in self._empty
        if isinstance(node, Times):
            return node.low == 0 or self.may_be_empty(node.part)
        return (all if isinstance(node, Sequence) else any)(self.may_be_empty(part) for part in node.parts)

    def _grow_ends(self) -> None:
        grown = True
        while grown:
            grown = False
            for (rule, last), known in self._ends.items():
                found = self.find_ends(self.rules[rule], last)
                grown = grown or not found <= known
                known |= found

    def find_ends(self, node: Node, last: bool) -> set[Terminal]:
        """The terminals that may be the first in what `node` holds, or the last."""
        if isinstance(node, Terminal):
            return {node}
        if isinstance(node, Call):
            return self._ends[node.name, last]
        if isinstance(node, Times):
            return self.find_ends(node.part, last)
        found: set[Terminal] = set()
        for part in node.parts[::-1] if last else node.parts:
            found |= self.find_ends(part, last)
            if isinstance(node, Sequence) and not self.may_be_empty(part):
                break
        return found

    def _find_neighbours(self, node: Node) -> None:
        """Terminals that may stand after a ``<``."""
        if isinstance(node, Times):
            self._meet(node.part, node.part)
            self._find_neighbours(node.part)
        elif isinstance(node, Sequence | Some):
            for i, part in enumerate(node.parts):
                self._find_neighbours(part)
                if isinstance(node, Sequence):
                    self._meet_next(part, node.parts[i + 1 :])

    def _meet_next(self, part: Node, rest: tuple[Node, ...]) -> None:
        for other in rest:
            self._meet(part, other)
            if not self.may_be_empty(other):
                return

    def _meet(self, part: Node, other: Node) -> None:
        if any(self.automata[terminal].may_end_open for terminal in self.find_ends(part, last=True)):
            self.after_open |= self.find_ends(other, last=False)

    def check(self) -> None:
        """Raises NotEnforced for rules that engines cannot follow: those that can begin with themselves."""
        leads = {rule: set(self._list_leading(node)) for rule, node in self.rules.items()}
        for rule in leads:
            seen: set[str] = set()
            waiting = [*leads[rule]]
            while waiting:
                other = waiting.pop()
                if other == rule:
                    raise NotEnforced(f"the rule {rule.rstrip('-')} can begin with itself")
                if other not in seen:
                    seen.add(other)
                    waiting += leads[other]

    def _list_leading(self, node: Node) -> Iterator[str]:
        """The rules with which `node` may begin."""
        if isinstance(node, Call):
            yield node.name
        elif isinstance(node, Times):
            if node.high != 1 and self.may_be_empty(node.part):
                raise NotEnforced("what is repeated may be empty")
            yield from self._list_leading(node.part)
        elif isinstance(node, Sequence | Some):
            leading = True
            for part in node.parts:
                found = [*self._list_leading(part)]
                if leading:
                    yield from found
                leading = leading and (isinstance(node, Some) or self.may_be_empty(part))


def _list_terminals(node: Node) -> Iterator[Terminal]:
    if isinstance(node, Terminal):
        yield node
    elif isinstance(node, Times):
        yield from _list_terminals(node.part)
    elif isinstance(node, Sequence | Some):
        for part in node.parts:
            yield from _list_terminals(part)


class _Writer:
    def __init__(self, facts: _Facts, name: str) -> None:
        self._facts = facts
        self._names = {rule: f"{name}-r{i}" if i else name for i, rule in enumerate(facts.rules)}
        self._terminals = {terminal: f"{name}-t{i}" for i, terminal in enumerate(facts.automata)}
        self._repeated: dict[Node, str] = {}
        self._name = name
        self._rules: dict[str, str] = {}

    def write(self) -> dict[str, str]:
        for rule, name in self._names.items():
            self._rules[name] = ""
            self._rules[name] = self._write(self._facts.rules[rule])
        for terminal, name in self._terminals.items():
            automaton = self._facts.automata[terminal]
            self._rules |= write_rules(automaton, name, terminal in self._facts.after_open)
        return self._rules

    def _write(self, node: Node) -> str:
        if isinstance(node, Terminal):
            return self._terminals[node]
        if isinstance(node, Call):
            return self._names[node.name]
        if isinstance(node, Times):
            return self._write_times(node)
        if not node.parts:
            return '""'
        parts = [self._write(part) for part in node.parts]
        return " ".join(parts) if isinstance(node, Sequence) else f"({' | '.join(parts)})"

    def _write_times(self, node: Times) -> str:
        """What is repeated gets a rule of its own, for engines count what stands inside a repeated group."""
        if node.part not in self._repeated:
            self._repeated[node.part] = f"{self._name}-m{len(self._repeated)}"
            self._rules[self._repeated[node.part]] = self._write(node.part)
        if (node.low, node.high) == (0, 1):
            return f"{self._repeated[node.part]}?"
        return f"{self._repeated[node.part]}{repeat(node.low, node.high)}"
