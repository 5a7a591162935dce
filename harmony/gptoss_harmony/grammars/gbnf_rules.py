"""The pieces that GBNF grammars are made of: quoting, and the rules for JSON values of no particular schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptoss_harmony.grammars.gbnf_numbers import integer_rule

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
    "integer": integer_rule(None, None),
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}


def literal(text: str) -> str:
    """`text` as a GBNF string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def json_literal(value: Any) -> str:
    """The one spelling of a JSON value that the grammar accepts, as a GBNF string."""
    return literal(json.dumps(value, ensure_ascii=False).replace("<|", "\\u003c|"))


def safe_name(text: str) -> str:
    """`text` with only what a GBNF rule name may hold."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def times(low: int, high: int | None) -> str:
    """Repetition, to put after an item; None is no upper limit."""
    return "*" if (low, high) == (0, None) else f"{{{low},{'' if high is None else high}}}"


def other_keys(known: Sequence[str]) -> str:
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
        avoid = "".join(_class_char(char) for char in node if char)
        ways = [rf'[^{_CONTROL}"\\|{avoid}] key-rest']
        ways += [f"{literal(char)} ({leave(node[char])})" for char in node if char and char not in '"\\|']
        return " | ".join(ways if "" in node else [*ways, '"\\""'])

    return leave(tree)


def _class_char(char: str) -> str:
    return "\\" + char if char in '\\]-["' else char
