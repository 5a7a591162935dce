"""Headers as models really write them: reads any header, never raises, and says what it repaired.

What it repaired it says with the flags of `flags.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import takewhile

from gptoss_harmony.messages import Role
from gptoss_harmony.parsing.events import Header
from gptoss_harmony.parsing.header_text import KNOWN_TYPES, TOOL_LIKE, Section, begins_with_role, guess_channel
from gptoss_harmony.parsing.tool_names import NOBODY, SPEAKERS, cut_to, find_alike, find_declared
from gptoss_harmony.tokens import CHANNEL, CHANNELS, CONSTRAIN, FIRST_SPECIAL, SPECIAL_NAMES

CONSTRAIN_MARK = SPECIAL_NAMES[CONSTRAIN - FIRST_SPECIAL]

_CONTENT_TYPE = re.compile(r"[A-Za-z][\w.+-]*(/[\w.+-]+(; ?[\w-]+=[^\s;]+)*)?")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w-]*")
_PARTS_OF_TO = ("to", "=", ":", "to:")


@dataclass(slots=True)
class ReadHeader:
    """A header, and what it took to read it."""

    header: Header
    flags: list[str] = field(default_factory=list)


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
        if self.tools:
            self._take_tools_in_channels()
            role, name = self._reread_role(role, name)
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
            if at < len(words) and self.tools and (joined := self._join_declared(name, words[at : at + 3])):
                at += joined
            elif at < len(words) and (whole := self._join_recipient(name, words[at])):
                at += 1
                self._flag("resolved_recipient")
                self.recipients.append(whole)
            else:
                self.recipients.append(name)

    def _join_declared(self, name: str, followers: list[str]) -> int:
        """How many words after ``to=`` belong to the name of a declared tool, which is then a recipient."""
        parts = list(takewhile(lambda word: word not in KNOWN_TYPES and not word.startswith("to="), followers))
        for n in range(len(parts), 0, -1):
            written = " ".join([name, *parts[:n]])
            if full := find_alike(written, self.tools, glued=name[-1:] in ("", ".", "/")):
                self._flag("resolved_recipient", "" if ".".join(written.split()) == full else written)
                self.recipients.append(full)
                return n
        return 0

    def _join_recipient(self, name: str, follower: str) -> str | None:
        """The recipient that the word after ``to=`` completes, if it does."""
        if not follower or follower in KNOWN_TYPES:
            return None
        if not name and self._is_tool(follower):
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
        if words and words[0] not in KNOWN_TYPES and (full := self._find_meant(words[0])):
            self._flag("tool_in_constrain", "" if full.endswith(words[0]) else words[0])
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

    def _find_meant(self, name: str) -> str | None:
        """The declared tool of this name, or else of one like it."""
        return find_declared(name, self.tools) or find_alike(name, self.tools)

    def _take_tools_in_channels(self) -> None:
        """A declared tool in the place of a channel is who is called, unless the header says it elsewhere too."""
        found = []
        channels = []
        for raw in self.channels:
            beginning = any(name.startswith(raw) for name in CHANNELS)
            full = None if beginning else self._find_meant(raw)
            if full is None:
                channels.append(raw)
                continue
            self._flag("tool_in_channel", raw)
            found.append(full)
            channel = guess_channel(raw)
            if channel and channel not in full.casefold():  # glued to the name
                channels.append(channel)
        self.channels = channels
        self.recipients = [*found, *self.recipients]

    def _reread_role(self, role: Role, name: str | None) -> tuple[Role, str | None]:
        """A tool's name in the place of the role: the model calls it, unless it makes up the tool's result.

        A result names its tool in full, and is sent to the assistant or to nobody and without a content type.
        """
        if role is not Role.TOOL or name is None:
            return role, name
        called = [found for recipient in self.recipients if (found := self._find_meant(recipient))]
        if name == role and not called:
            return role, name
        meant = self._find_meant(name)
        typed = bool(self.types) or not KNOWN_TYPES.isdisjoint(self.words)
        if not called and (self.recipients or meant is None or (meant == name and not typed)):
            return role, name
        self.flags = [flag for flag in self.flags if flag != "unknown_role"]
        self._flag("tool_in_role", name)
        if not called and meant:
            self.recipients.append(meant)
        return Role.ASSISTANT, None

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
        chosen = next((name for name in reversed(real) if self._find_meant(name)), real[-1])
        for name, times in Counter(found).items():
            for _ in range(times - (name == chosen)):
                self._flag("repeated_recipient", name)
        if chosen in SPEAKERS:
            return chosen
        full = self._find_meant(chosen)
        if full is None and chosen.casefold() in NOBODY:
            return self._name_nobody(chosen)
        if not self.tools:
            return chosen
        if full is None and role is Role.ASSISTANT:
            self._flag("undeclared_tool")
        if full and full != chosen:
            self._flag("resolved_recipient", "" if full.endswith(chosen) else chosen)
        return full or chosen

    def _name_nobody(self, chosen: str) -> str:
        name = chosen.casefold()
        if name != chosen:
            self._flag("resolved_recipient", chosen)
        return name

    def _take_bare_recipient(self) -> str | None:
        """A tool's name without ``to=``, or with another spelling of it, alone or before a content type."""
        words = self.words
        for at, written in enumerate(words):
            word = cut_to(written)
            full = find_declared(word, self.tools) if word == written else self._find_meant(word)
            typed = words[at + 1 :] and words[at + 1] in KNOWN_TYPES and _IDENTIFIER.fullmatch(word)
            if full or TOOL_LIKE.fullmatch(word) or typed:
                before = at
                while before and words[before - 1].casefold() in _PARTS_OF_TO:
                    before -= 1
                self._flag("missing_to", " ".join([*words[before:at], written.removesuffix(word)]).strip())
                del words[before : at + 1]
                return self._name_bare(word, full)
        return None

    def _name_bare(self, word: str, full: str | None) -> str:
        if full is None and self.tools:
            full = find_alike(word, self.tools)
            self._flag("resolved_recipient" if full else "undeclared_tool", word if full else "")
        return full or word

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
