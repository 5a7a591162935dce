"""The pieces that GBNF grammars are made of: quoting, and the rules for JSON values of no particular schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptoss_harmony.grammars.gbnf_numbers import write_integer_rule

_CONTROL = r"\x00-\x1F\uD800-\uDFFF"  # and halves of surrogates, which are no characters
_HEX = "[0-9a-fA-F]"
BASE_RULES = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    # A surrogate half is no character; characters beyond the BMP are written as themselves.
    "escape": rf'"\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] {_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}}))',
    # A string, except that "<|" followed by a small letter would spell a control token.
    "string": r'"\"" string-0',
    "string-0": rf'[^"\\<{_CONTROL}] string-0 | escape string-0 | "<" string-1 | "\""',
    "string-1": rf'[^"\\<|{_CONTROL}] string-0 | escape string-0 | "<" string-1 | "|" string-2 | "\""',
    "string-2": rf'[^"\\<a-z{_CONTROL}] string-0 | escape string-0 | "<" string-1 | "\""',
    # For counted strings: "|" only as \u007c, so that no "<|" can arise.
    "char": rf'[^"\\|{_CONTROL}] | escape',
    "key-rest": rf'[^"\\|{_CONTROL}]{{0,64}} "\""',
    "integer": write_integer_rule(None, None),
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}


def quote(text: str) -> str:
    """`text` as a GBNF string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def quote_json(value: Any) -> str:
    """The one spelling of a JSON value that the grammar accepts, as a GBNF string."""
    return quote(json.dumps(value, ensure_ascii=False).replace("<|", "\\u003c|"))


def clean_name(text: str) -> str:
    """`text` with only what a GBNF rule name may hold."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def repeat(low: int, high: int | None) -> str:
    """Repetition, to put after an item; None is no upper limit."""
    if high is None:
        return f"{{{low},}}" if low else "*"
    return f"{{{low},{high}}}"


def exclude_keys(known: Sequence[str]) -> str:
    """A key other than `known`, up to its closing quote, without escapes: a trie of the known ones, left at any
    point.
    """
    tree: dict[str, Any] = {}
    for key in known:
        node = tree
        for char in key:
            node = node.setdefault(char, {})
        node[""] = {}

    def leave(node: dict[str, Any]) -> str:
        avoid = "".join(_escape_in_class(char) for char in node if char)
        ways = [rf'[^{_CONTROL}"\\|{avoid}] key-rest']
        ways += [f"{quote(char)} ({leave(node[char])})" for char in node if char and char not in '"\\|']
        return " | ".join(ways if "" in node else [*ways, '"\\""'])

    return leave(tree)


def _escape_in_class(char: str) -> str:
    return "\\" + char if char in '\\]-["' else char


class RuleBook:
    """The rules of one grammar, by name: `bodies` in the order in which they came."""

    def __init__(self) -> None:
        self.bodies: dict[str, str] = {"ws": BASE_RULES["ws"]}

    def add(self, name: str, body: str) -> str:
        """Adds a rule under `name`, or a numbered name if another rule has it; returns its name."""
        unique = name
        n = 1
        while self.bodies.get(unique, body) != body:
            n += 1
            unique = f"{name}-{n}"
        self.bodies[unique] = body
        return unique

    def reserve(self, name: str) -> str:
        """A name that no rule has, for a rule whose body comes later."""
        unique = name
        n = 1
        while unique in self.bodies:
            n += 1
            unique = f"{name}-{n}"
        self.bodies[unique] = ""
        return unique

    def add_base(self, name: str) -> str:
        """The name of a rule of BASE_RULES, added with the rules that it needs."""
        if name not in self.bodies:
            self.bodies[name] = BASE_RULES[name]
            for other in BASE_RULES:
                if other != name and other in BASE_RULES[name].replace("(", " ").split():
                    self.add_base(other)
        return name
