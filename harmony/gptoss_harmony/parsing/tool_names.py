"""Names of tools as models write them, and which of the declared tools is meant.

Two names are alike if their letters and digits are, whatever their case and what stands between them: ``get-weather``,
``Get Weather`` and ``functions/get_weather`` all mean ``functions.get_weather``. A name that is like two declared tools
means neither of them, and a beginning of a name never means the whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeAlias

from gptoss_harmony.messages import Role, Tool, ToolNamespace
from gptoss_harmony.tokens import CHANNELS

ToolNames: TypeAlias = Iterable[str | Tool] | Mapping[str, ToolNamespace]

SPEAKERS = frozenset({None, "assistant", "user", "all", ""})
NOBODY = SPEAKERS | {*Role, *CHANNELS, "json", "code", "none", "functions", "functions."}
"""Recipients that address no tool."""

_NAMESPACES = ("functions", "function")
_BUILTINS = ("browser", "python")
_OTHER_NAMESPACE = re.compile(r"\W*(?:tools?|func|fn|api|default_api)[^\w\s]+")
"""What other models call the namespace of the functions."""
_OTHER_TO = re.compile(r"\s*(?:to|recipient)\s*[=:]+\s*", re.IGNORECASE)
_GLUED = (*CHANNELS, "constrain", "json", "code", Role.ASSISTANT.value)
"""Words of a header that models forget to part from the name."""
_GLUED_BEFORE = (*CHANNELS, Role.ASSISTANT.value)


def tool_names(tools: ToolNames | None) -> frozenset[str]:
    """Full names (``functions.f``) of tools declared as names, as `Tool`s of the namespace functions, or by namespace.

    A built-in namespace is called by its own name too (``python``), ``functions`` never is."""
    if isinstance(tools, Mapping):
        spaces = [space.name for space in tools.values() if space.name in _BUILTINS]
        return frozenset([*spaces, *(f"{space.name}.{tool.name}" for space in tools.values() for tool in space.tools)])
    return frozenset(tool if isinstance(tool, str) else f"functions.{tool.name}" for tool in tools or ())


def find_declared(name: str, tools: frozenset[str]) -> str | None:
    """The full name of the declared tool with just this name, with its namespace or without ``functions``."""
    if name in tools:
        return name
    full = f"functions.{name}"
    return full if full in tools else None


def find_alike(name: str, tools: frozenset[str], glued: bool = True) -> str | None:
    """The full name of the one declared tool that `name` is like. `glued`: header words stuck to it do not count."""
    if not tools:
        return None
    index = _index_letters(tools)
    for letters in _spell_variants(_take_letters(name), glued):
        if found := index.get(letters):
            return found
    space = _OTHER_NAMESPACE.match(name.casefold())
    return index.get(_take_letters(name.casefold()[space.end() :])) if space else None


def is_tool_word(word: str, tools: frozenset[str]) -> bool:
    """Is `word` a declared tool's name, or a function's with its namespace?"""
    return word.startswith("functions.") or find_declared(word, tools) is not None


def begins_name(text: str, tools: frozenset[str]) -> bool:
    """Is `text` the beginning of a declared tool's name, with its namespace or without ``functions``?"""
    text = text.casefold()
    return any(
        tool.casefold().startswith(text) or tool.removeprefix("functions.").casefold().startswith(text)
        for tool in tools
    )


def cut_to(word: str) -> str:
    """`word` without ``to=``, however that is written."""
    return _OTHER_TO.sub("", word, count=1) if _OTHER_TO.match(word) else word


def _take_letters(name: str) -> str:
    return "".join([char for char in unicodedata.normalize("NFKC", name).casefold() if char.isalnum()])


def _spell_variants(letters: str, glued: bool) -> Iterator[str]:
    """`letters` as they are, without a namespace, and without what is glued to them."""
    yield letters
    for space in _NAMESPACES:  # `functions` may be the singular before a name that begins with s
        if letters.startswith(space):
            yield from _spell_variants(letters.removeprefix(space), glued)
    while glued and (word := next((word for word in _GLUED if letters.endswith(word)), None)):
        letters = letters.removesuffix(word)
        yield letters
    while glued and (word := next((word for word in _GLUED_BEFORE if letters.startswith(word)), None)):
        letters = letters.removeprefix(word)
        yield from _spell_variants(letters, glued=False)


@lru_cache(maxsize=64)
def _index_letters(tools: frozenset[str]) -> dict[str, str | None]:
    """Declared tools by the letters of their names: with their namespace, and without it where that is enough."""
    index: dict[str, str | None] = {}
    for whole in (True, False):
        taken = frozenset(index)
        for tool in sorted(tools):
            space, _, name = tool.partition(".")
            letters = _take_letters(name if space == "functions" or not whole else tool)
            if letters and letters not in taken:
                index[letters] = tool if index.get(letters, tool) == tool else None
    return index
