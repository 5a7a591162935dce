"""The text of a template in pieces: plain text and actions, and the tokens of an action."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from gptoss_converters.ollama.go_nodes import TemplateError

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)(\s-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*?(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)"""
    r"""|(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))"""
    r"""|(?P<variable>\$\w*)|(?P<field>\.[A-Za-z_]\w*)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|=|\||,|\(|\)|\.)"""
)


class Item(NamedTuple):
    """Text, or what stands between the braces of an action."""

    text: str
    is_action: bool
    line: int


class Token(NamedTuple):
    kind: str
    text: str
    spaced: bool  # white space before it


def split_items(text: str) -> list[Item]:
    """Text and actions in turn, with white space removed where a {{- or -}} asks for it."""
    items: list[Item] = []
    at = 0
    line = 1
    trim = False
    while at < len(text):
        begin = text.find("{{", at)
        plain = text[at : begin if begin >= 0 else len(text)]
        match = None
        if begin >= 0:
            match = _COMMENT.match(text, begin) or _match_action(text, begin)
            if not match:
                raise TemplateError("unclosed action", line + plain.count("\n"))
        shown = plain.lstrip() if trim else plain
        trim = False
        if match and match[0].startswith("{{-"):
            shown = shown.rstrip()
        if shown:
            items.append(Item(shown, False, line))
        line += plain.count("\n")
        if not match:
            break
        trim = match[0].endswith("-}}")
        if not _COMMENT.fullmatch(match[0]):
            items.append(Item(match[2], True, line))
        line += match[0].count("\n")
        at = match.end()
    return items


def split_tokens(action: str, line: int) -> list[Token]:
    """The tokens of one action. Raises TemplateError for what Go has no token for."""
    tokens: list[Token] = []
    at = 0
    spaced = True
    while at < len(action):
        match = _TOKEN.match(action, at)
        if not match:
            raise TemplateError(f"unexpected {action[at : at + 20].strip()!r} in an action", line)
        if match.lastgroup:
            tokens.append(Token(match.lastgroup, match[0], spaced))
        spaced = not match.lastgroup
        at = match.end()
    return tokens


def _match_action(text: str, begin: int) -> re.Match[str] | None:
    """The action at `begin`; braces inside its strings do not end it."""
    end = begin
    while True:
        end = text.find("}}", end)
        if end < 0:
            return None
        end += 2
        match = _ACTION.fullmatch(text, begin, end)
        quotes = re.sub(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`', "", text[begin:end])
        if match and '"' not in quotes and "`" not in quotes:
            return match


def unquote(text: str) -> str:
    value: str = text[1:-1] if text[0] == "`" else json.loads(text)
    return value
