"""Headers as models really write them: reads any header, never raises, and says what it repaired.

What it repaired it says with the flags of `flags.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias

from gptoss_harmony.messages import Role, Tool, ToolNamespace
from gptoss_harmony.parsing.events import Header
from gptoss_harmony.parsing.header_text import KNOWN_TYPES, TOOL_LIKE, Section, begins_with_role, guess_channel
from gptoss_harmony.tokens import CHANNEL, CHANNELS, CONSTRAIN, FIRST_SPECIAL, SPECIAL_NAMES

CONSTRAIN_MARK = SPECIAL_NAMES[CONSTRAIN - FIRST_SPECIAL]

_CONTENT_TYPE = re.compile(r"[A-Za-z][\w.+-]*(/[\w.+-]+(; ?[\w-]+=[^\s;]+)*)?")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(slots=True)
class ReadHeader:
    """A header, and what it took to read it."""

    header: Header
    flags: list[str] = field(default_factory=list)


ToolNames: TypeAlias = Iterable[str | Tool] | Mapping[str, ToolNamespace]


def tool_names(tools: ToolNames | None) -> frozenset[str]:
    """Full names (``functions.f``) of tools declared as names, as `Tool`s of the namespace functions, or by namespace.

    A built-in namespace is called by its own name too (``python``), ``functions`` never is."""
    if isinstance(tools, Mapping):
        spaces = [space.name for space in tools.values() if space.name != "functions"]
        return frozenset([*spaces, *(f"{space.name}.{tool.name}" for space in tools.values() for tool in space.tools)])
    return frozenset(tool if isinstance(tool, str) else f"functions.{tool.name}" for tool in tools or ())


def read_header(sections: list[Section], given: Role | None, tools: frozenset[str], started: bool = True) -> ReadHeader:
    """`given`: the role known beforehand; `started`: False if ``<|start|>`` was missing, so that no role need
    follow.
    """
    return _HeaderReader(tools).read(sections, given, started)


class _HeaderReader:
    """One header. The words of all sections are sorted into role, channel, recipient and content type."""

    def __init__(self, tools: frozenset[str]) -> None:
        self.tools = tools
        self.flags: list[str] = []
        self.channels: list[str] = []
        self.recipients: list[str] = []
        self.types: list[str] = []
        self.words: list[str] = []

    def read(self, sections: list[Section], given: Role | None, started: bool) -> ReadHeader:
        words = sections[0][1].split()
        role, name = self._take_role(words, given, started)
        self._sort(words)
        for marker, text in sections[1:]:
            words = text.split()
            if marker == CHANNEL:
                self._take_channel(words, text)
            elif marker == CONSTRAIN:
                self._take_constrained(words, text)
            else:
                self._flag("special_in_header", SPECIAL_NAMES[marker - FIRST_SPECIAL] if marker else "")
            self._sort(words)
        channel = self._choose_channel()
        recipient = self._choose_recipient(role)
        return ReadHeader(Header(role, name, channel, recipient, self._choose_content_type(recipient)), self.flags)

    def _flag(self, code: str, text: str = "") -> None:
        self.flags.append(f"{code}:{text}" if text else code)

    def _take_role(self, words: list[str], given: Role | None, started: bool) -> tuple[Role, str | None]:
        """Takes the role's words off `words`. A role word may be repeated, or glued to what follows."""
        first = words[0] if words else ""
        role = given or next((role for role in Role if begins_with_role(first, role)), None)
        if role is None:
            return self._take_unknown_role(words, started)
        if not begins_with_role(first, role):
            return role, None
        rest = words.pop(0).removeprefix(role)
        if given:
            self._flag("repeated_role", role.value)
        while rest.startswith(role):
            rest = rest.removeprefix(role)
            self._flag("repeated_role", role.value)
        if rest.startswith(":"):
            return role, rest[1:]
        if rest:
            self._flag("missing_space")
            words.insert(0, rest)
        return role, role.value if role is Role.TOOL and not given else None

    def _take_unknown_role(self, words: list[str], started: bool) -> tuple[Role, str | None]:
        if not words or words[0].startswith("to=") or words[0] in CHANNELS or not (started or self._is_tool(words[0])):
            if started:
                self._flag("missing_role")
            return Role.ASSISTANT, None
        name = words.pop(0)
        if not self._is_tool(name):
            self._flag("unknown_role")
        return Role.TOOL, name

    def _is_tool(self, word: str) -> bool:
        return word in self.tools or bool(TOOL_LIKE.fullmatch(word))

    def _sort(self, words: list[str]) -> None:
        """Recipients to `recipients`, the rest to `words`."""
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if not word.startswith("to="):
                self.words.append(word)
                continue
            name = word.removeprefix("to=")
            whole = self._join_recipient(name, words[at]) if at < len(words) else None
            if whole is not None:
                at += 1
                self._flag("resolved_recipient")
            self.recipients.append(name if whole is None else whole)

    def _join_recipient(self, name: str, follower: str) -> str | None:
        """The recipient that the word after ``to=`` completes, if it does."""
        if not follower or follower in KNOWN_TYPES:
            return None
        if not name and (self._is_tool(follower) or f"functions.{follower}" in self.tools):
            return follower
        if name == "functions" and _IDENTIFIER.fullmatch(follower):
            return f"functions.{follower}"
        return None

    def _take_channel(self, words: list[str], text: str) -> None:
        if not words or words[0].startswith("to="):
            self._flag("empty_channel")
            return
        name, glued, rest = words.pop(0).partition("to=")
        if glued:
            self._flag("missing_space")
            words.insert(0, glued + rest)
        self.channels.append(name)

    def _take_constrained(self, words: list[str], text: str) -> None:
        """The content type after ``<|constrain|>``; what is not a type stays in `words`."""
        if words and (full := self._find_declared(words[0])):
            self._flag("tool_in_constrain")
            self.recipients.append(full)
            del words[0]
            return
        tail = list(takewhile(lambda word: not word.startswith("to="), words))
        value = " ".join(tail)
        if not _CONTENT_TYPE.fullmatch(value):
            value = tail[0] if tail and tail[0] in KNOWN_TYPES else ""
        if value and text[:1].isspace():
            self._flag("repaired_content_type")
        self.types.append(CONSTRAIN_MARK + value)
        del words[: len(value.split())]

    def _find_declared(self, name: str) -> str | None:
        if name in self.tools:
            return name
        full = f"functions.{name}"
        return full if full in self.tools else None

    def _choose_channel(self) -> str | None:
        """The last channel that is valid; a bare channel name among the words counts if no marker gave one."""
        bare = [word for word in self.words if word in CHANNELS]
        self.words = [word for word in self.words if word not in CHANNELS]
        if bare and not self.channels:
            self._flag("missing_channel_marker")
        candidates = [(raw, guess_channel(raw)) for raw in bare + self.channels]
        chosen = next((pair for pair in reversed(candidates) if pair[1]), candidates[-1] if candidates else None)
        for pair in candidates:
            raw, known = pair
            if pair is not chosen:
                self._flag("repeated_channel", raw)
            elif known is None:
                self._flag("unknown_channel", raw)
            elif known != raw:
                self._flag("repaired_channel", raw)
        return chosen[1] if chosen else None

    def _choose_recipient(self, role: Role) -> str | None:
        found = self.recipients
        if not found:
            return self._take_bare_recipient()
        real = [name for name in found if name and not (name == Role.ASSISTANT and role is Role.ASSISTANT)] or found
        chosen = real[-1]
        for name, times in Counter(found).items():
            for _ in range(times - (name == chosen)):
                self._flag("repeated_recipient", name)
        full = self._find_declared(chosen)
        if full and full != chosen:
            self._flag("resolved_recipient")
            return full
        return chosen

    def _take_bare_recipient(self) -> str | None:
        """A tool's name without ``to=``, alone or before a content type."""
        words = self.words
        for at, word in enumerate(words):
            full = self._find_declared(word)
            typed = words[at + 1 :] and words[at + 1] in KNOWN_TYPES and _IDENTIFIER.fullmatch(word)
            if full or TOOL_LIKE.fullmatch(word) or typed:
                self._flag("missing_to")
                del words[at]
                return full or word
        return None

    def _choose_content_type(self, recipient: str | None) -> str | None:
        """The constrained type, else the words that are left if they look like one type."""
        text = " ".join(self.words)
        self.words = []
        if text and not self.types and _CONTENT_TYPE.fullmatch(text):
            return text
        if text:
            self._flag("extra_header_words", text)
        for extra in self.types[:-1]:
            self._flag("repaired_content_type", extra.removeprefix(CONSTRAIN_MARK))
        return self.types[-1] if self.types else None
