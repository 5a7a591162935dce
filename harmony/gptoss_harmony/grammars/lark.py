"""Lark grammars, as clients write them for custom tools -> rules for the inside of a JSON string.

Terminals are regular (`regular`), and what `%ignore` names may stand after each of them and at the beginning. Rules are
GBNF rules; one that begins with itself is turned into a repetition. A terminal ends where the rules let it: Lark's own
lexer takes the longest one, and so may refuse a text that is accepted here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gptoss_harmony.grammars.lark_rules import Call, Node, Sequence, Some, Terminal, Times, write_grammar
from gptoss_harmony.grammars.regex import parse_regex
from gptoss_harmony.grammars.regular import Either, Joined, NotEnforced, Regular, Repeated, spell_text

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\f]+|//[^\n]*|\#[^\n]*)|(?P<line>\n)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)|(?P<regex>/(?:\\.|[^/\\\n])+/[a-z]*)
    |(?P<name>_*[A-Za-z][A-Za-z0-9_]*)|(?P<number>-?\d+)|(?P<mark>->|\.\.|[%:|()\[\]?!*+~.,{}])""",
    re.VERBOSE,
)
_COMMON = {
    "DIGIT": r"[0-9]",
    "HEXDIGIT": r"[a-fA-F0-9]",
    "INT": r"[0-9]+",
    "SIGNED_INT": r"[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "NUMBER": r"[0-9]+([eE][+-]?[0-9]+)?|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+([eE][+-]?[0-9]+)?|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "SIGNED_FLOAT": r"[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "LCASE_LETTER": r"[a-z]",
    "UCASE_LETTER": r"[A-Z]",
    "LETTER": r"[a-zA-Z]",
    "WORD": r"[a-zA-Z]+",
    "CNAME": r"[_a-zA-Z][_a-zA-Z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "ESCAPED_STRING": r'"([^"\\\n]|\\[^\n])*"',
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
}
"""The terminals of Lark's library `common`."""
_MOST_TIMES = 1999  # llama.cpp's limit
_MOST_NESTED = 100


def convert_lark(text: str, name: str) -> dict[str, str]:
    """GBNF rules of a Lark grammar; the first is called `name`. Raises NotEnforced for what is none, or has no rules
    here.
    """
    source = _Parser(text).read()
    if "start" not in source.rules:
        raise NotEnforced("it has no rule called start")
    return write_grammar({rule: source.build(rule) for rule in source.reach("start")}, source.build_ignored(), name)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    first: bool  # of its line


class _Name(NamedTuple):
    name: str
    line: int


@dataclass(frozen=True)
class _Quantity:
    part: _Part
    low: int
    high: int | None


@dataclass(frozen=True)
class _Group:
    ways: tuple[tuple[_Part, ...], ...]


_Part = Regular | _Name | _Quantity | _Group


@dataclass
class _Source:
    rules: dict[str, _Group] = field(default_factory=dict)
    terminals: dict[str, _Group] = field(default_factory=dict)
    ignored: list[_Group] = field(default_factory=list)

    def reach(self, start: str) -> list[str]:
        """The rules that `start` needs, itself first."""
        found: dict[str, None] = {}
        waiting = [start]
        while waiting:
            rule = waiting.pop()
            if rule not in found:
                found[rule] = None
                waiting += [part.name for part in _list_names(self.rules[rule]) if part.name in self.rules]
        return list(found)

    def build(self, rule: str) -> Node:
        return self._build(self.rules[rule])

    def build_ignored(self) -> tuple[Terminal, ...]:
        return tuple(Terminal(self._build_regular(group, ())) for group in self.ignored)

    def _build(self, part: _Part) -> Node:
        if isinstance(part, _Group):
            ways = tuple(Sequence(tuple(self._build(inner) for inner in way)) for way in part.ways)
            return ways[0] if len(ways) == 1 else Some(ways)
        if isinstance(part, _Quantity):
            return Times(self._build(part.part), part.low, part.high)
        if isinstance(part, _Name) and part.name in self.rules:
            return Call(part.name)
        return Terminal(self._build_regular(part, ()))

    def _build_regular(self, part: _Part, inside: tuple[str, ...]) -> Regular:
        """The language of what stands in a terminal. `inside`: the terminals that it stands in."""
        if isinstance(part, _Group):
            ways = tuple(Joined(tuple(self._build_regular(p, inside) for p in way)) for way in part.ways)
            return ways[0] if len(ways) == 1 else Either(ways)
        if isinstance(part, _Quantity):
            return Repeated(self._build_regular(part.part, inside), part.low, part.high)
        if not isinstance(part, _Name):
            return part
        if part.name in inside or len(inside) > _MOST_NESTED:
            raise NotEnforced(f"line {part.line}: the terminal {part.name} is made of itself")
        if part.name not in self.terminals:
            raise NotEnforced(f"line {part.line}: nothing is called {part.name}")
        return self._build_regular(self.terminals[part.name], (*inside, part.name))


def _list_names(part: _Part) -> Iterator[_Name]:
    if isinstance(part, _Name):
        yield part
    elif isinstance(part, _Quantity):
        yield from _list_names(part.part)
    elif isinstance(part, _Group):
        for way in part.ways:
            for inner in way:
                yield from _list_names(inner)


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = [*_tokenize(text), _Token("end", "", text.count("\n") + 1, True)]
        self._at = 0
        self._depth = 0
        self._source = _Source()

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _refuse(self, words: str) -> NotEnforced:
        return NotEnforced(f"line {self._next.line}: {words}")

    def _take(self, text: str) -> bool:
        found = self._next.kind == "mark" and self._next.text == text
        self._at += found
        return found

    def _take_kind(self, kind: str, words: str) -> str:
        if self._next.kind != kind:
            raise self._refuse(f"expected {words} (got {self._next.text or 'the end'!r})")
        self._at += 1
        return self._tokens[self._at - 1].text

    def read(self) -> _Source:
        directives: dict[str, Callable[[], None]] = {"import": self._import, "ignore": self._ignore}
        while self._next.kind != "end":
            if not self._take("%"):
                self._read_definition()
                continue
            name = self._take_kind("name", "a directive")
            if name not in directives:
                raise self._refuse(f"%{name} is not read here")
            directives[name]()
        return self._source

    def _read_definition(self) -> None:
        while self._take("?") or self._take("!"):  # what Lark makes of the rule
            pass
        name = self._take_kind("name", "a rule")
        if self._take("."):
            self._take_kind("number", "a priority")
        if not self._take(":"):
            raise self._refuse(f"expected ':' after {name} (got {self._next.text!r})")
        group = self._read_ways()
        terminal = name.lstrip("_")[:1].isupper()
        known = self._source.terminals if terminal else self._source.rules
        if name in known:
            raise self._refuse(f"{name} is defined twice")
        known[name] = group

    def _import(self) -> None:
        self._take(".")
        library = self._take_kind("name", "a library")
        names = []
        self._at += self._next.text == "."
        if self._take("("):
            while not self._take(")"):
                names.append(self._take_kind("name", "a terminal"))
                self._take(",")
        else:
            names.append(self._take_kind("name", "a terminal"))
        alias = self._take_kind("name", "a name") if self._take("->") else None
        for name in names:
            if library != "common" or name not in _COMMON:
                raise self._refuse(f"{library}.{name} is not known here")
            self._source.terminals[alias or name] = _Group(((parse_regex(_COMMON[name]),),))

    def _ignore(self) -> None:
        self._source.ignored.append(self._read_ways())

    def _read_ways(self) -> _Group:
        ways = [self._read_way()]
        while self._take("|"):
            ways.append(self._read_way())
        return _Group(tuple(ways))

    def _read_way(self) -> tuple[_Part, ...]:
        parts: list[_Part] = []
        while not self._is_over():
            parts.append(self._read_quantity(self._read_part()))
        if self._take("->"):
            self._take_kind("name", "a name")  # how Lark calls what it found
        return tuple(parts)

    def _is_over(self) -> bool:
        token = self._next
        if token.kind == "end" or (token.kind == "mark" and token.text in ("|", ")", "]", "->", "%")):
            return True
        return token.first and self._is_definition()

    def _is_definition(self) -> bool:
        """Does a definition stand here: a name, perhaps with marks before it and a priority after it, and a colon?"""
        at = self._at
        while self._tokens[at].text in ("?", "!"):
            at += 1
        after = [token.text for token in self._tokens[at + 1 : at + 4]]
        named = self._tokens[at].kind == "name"
        return named and (after[:1] == [":"] or (after[:1] == ["."] and after[2:] == [":"]))

    def _read_part(self) -> _Part:
        token = self._next
        if self._take("(") or self._take("["):
            optional = token.text == "["
            self._depth += 1
            if self._depth > _MOST_NESTED:
                raise self._refuse("groups are nested too deeply")
            group = self._read_ways()
            self._depth -= 1
            if not self._take("]" if optional else ")"):
                raise self._refuse("a group is not closed")
            return _Quantity(group, 0, 1) if optional else group
        self._at += 1
        if token.kind == "string":
            return self._read_string(token)
        if token.kind == "regex":
            body, _, flags = token.text[1:].rpartition("/")
            return parse_regex(body.replace("\\/", "/"), "".join(flag for flag in flags if flag not in "lu"))
        if token.kind != "name" or self._next.text == "{":
            self._at -= 1
            raise self._refuse(f"{token.text!r} is not read here")
        return _Name(token.text, token.line)

    def _read_string(self, token: _Token) -> Regular:
        text = _read_literal(token)
        if self._take(".."):
            other = self._next
            self._take_kind("string", "the range's other end")
            ends = (text, _read_literal(other))
            if any(len(end) != 1 for end in ends) or ends[0] > ends[1]:
                raise self._refuse("a range is of two characters, in their order")
            return parse_regex("[" + "-".join(f"\\u{{{ord(end):x}}}" for end in ends) + "]")
        if token.text.endswith("i"):
            return parse_regex("".join(f"\\u{{{ord(char):x}}}" for char in text), "i")
        return spell_text(text)

    def _read_quantity(self, part: _Part) -> _Part:
        if self._is_over():
            return part  # the question mark of a next line belongs to its rule
        for mark, low, high in (("?", 0, 1), ("*", 0, None), ("+", 1, None)):
            if self._take(mark):
                return _Quantity(part, low, high)
        if not self._take("~"):
            return part
        low = int(self._take_kind("number", "how often"))
        high = int(self._take_kind("number", "how often at most")) if self._take("..") else low
        if not 0 <= low <= high <= _MOST_TIMES:
            raise self._refuse(f"expected 0 <= {low} <= {high} <= {_MOST_TIMES} repetitions")
        return _Quantity(part, low, high)


def _tokenize(text: str) -> Iterator[_Token]:
    at, line, first = 0, 1, True
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise NotEnforced(f"line {line}: {text[at : at + 20]!r} is not read here")
        at = found.end()
        kind = str(found.lastgroup)
        if kind == "line":
            line, first = line + 1, True
        elif kind != "blank":
            yield _Token(kind, found[0], line, first)
            first = False


def _read_literal(token: _Token) -> str:
    """The text of a string, whose escapes are those of a regular expression."""
    body = token.text.removesuffix("i")[1:-1]

    def unescape(found: re.Match[str]) -> str:
        simple = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "b": "\b", "0": "\0"}
        if found[1]:
            return chr(int(found[1][1:], 16))
        if found[2] in simple:
            return simple[found[2]]
        if found[2].isalnum():
            raise NotEnforced(f"line {token.line}: '\\{found[2]}' is not read here")
        return found[2]

    try:
        return re.sub(r"\\(?:(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(.))", unescape, body)
    except (ValueError, OverflowError) as error:
        raise NotEnforced(f"line {token.line}: {error}") from None
