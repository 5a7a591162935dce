"""A header without its ``<|message|>``: which of its words are the header's, and where the content begins."""

from __future__ import annotations

import re
from typing import TypeAlias

from gptoss_harmony.messages import Role
from gptoss_harmony.parsing.tool_names import begins_name, cut_to, find_alike, find_declared, is_tool_word
from gptoss_harmony.tokens import ANALYSIS, CHANNEL, CHANNELS, COMMENTARY, CONSTRAIN

Section: TypeAlias = tuple[int | None, str]
"""A special token of the header (None: its beginning) and the text after it."""

TOOL_LIKE = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)+")
KNOWN_TYPES = frozenset({"json", "code"})
_HEADER_WORDS = (*Role, *CHANNELS, *sorted(KNOWN_TYPES), "to=")
_NAMES = "|".join(CHANNELS)
_ROLES = "|".join(Role)
_GLUED_WORDS = re.compile(rf"(?:{_NAMES}|{_ROLES})+")
_GLUED_MARKUP = re.compile(rf"(?:{_NAMES}|{_ROLES}|json|code)+")
_GLUED_BEFORE = re.compile(rf"^(?:{_NAMES}|{Role.ASSISTANT}|json|code)+")
_LEADING_ROLE = re.compile(rf"\s*(?:(?:(?:{_ROLES})+(?::\S+)?|[A-Za-z_][\w-]*(?:\.[\w-]+)+)(?=\s|$|to=))?")
_LEADING_CHANNEL = re.compile(rf"\s*[^\w\s]*(?:{_NAMES})[?]*")
_LEADING_WORDS = re.compile(r"(?:\s*to=[^\s{\[<]+)+(?:\s*(?:json|code)(?!\w))?")
_LEADING_TYPE = re.compile(r"\s*(?:json|code|[\w.+-]+(?=\s|$))")
_BARE_NAME = re.compile(r"\s*([^\s{\[<]+)(?:\s*(?:json|code))?\s*(?=[{\[]|$)")
_EDGE = re.compile(r"^[\u200b-\u200f\u2060\ufeff/.:=]+")
_NAME_LIKE = re.compile(r"[\w./:-]+")
_STRIPPED_CALL = re.compile(rf"\s*(?:{_NAMES})\s*to=\S")
_STRIPPED = re.compile(rf"assistant(?={_NAMES})")


def split_headless(sections: list[Section], tools: frozenset[str] = frozenset()) -> tuple[list[Section], str]:
    """Header sections and content of a message that has no ``<|message|>``: the content follows the last header
    word. `tools`: the declared ones, whose bare names are such words too where JSON or nothing follows.
    """
    marker, text = sections[-1]
    if marker == CHANNEL:
        used = _match_end(_LEADING_CHANNEL, text, 0) or _measure_channel_prefix(text)
        used = _match_name(text, used, tools)
    else:
        used = _match_end(_LEADING_TYPE if marker == CONSTRAIN else _LEADING_ROLE, text, 0)
    used = _match_end(_LEADING_WORDS, text, used)
    return [*sections[:-1], (marker, text[:used])], text[used:].lstrip() if used else text


def is_header_text(text: str) -> bool:
    """True if every word of `text` can stand before ``<|channel|>``; False for prose."""
    return all(_is_header_word(word) or TOOL_LIKE.fullmatch(word) for word in _split_words(text))


def is_markup(text: str) -> bool:
    """True if every word of `text` is one that only headers have: a role, a channel, a recipient, a content type."""
    return all(_is_header_word(word) or _GLUED_MARKUP.fullmatch(word) for word in _split_words(text.lower()))


def is_markup_beginning(text: str, started: bool) -> bool:
    """The same for text that the end of the stream cut off inside its last word.

    `started`: after ``<|start|>`` any beginning of a header's word will do; without it one word of an answer could be.
    """
    before, last = "", text
    if (found := text.split()) and not text[-1:].isspace():
        last = found[-1]
        before = text[: text.rindex(last)]
    beginnings = _HEADER_WORDS if started else ("to=", COMMENTARY)
    least = 1 if started else 2
    beginning = _GLUED_BEFORE.sub("", last.lower())
    return is_markup(text) or (
        is_markup(before) and len(last) >= least and any(word.startswith(beginning) for word in beginnings)
    )


def _is_header_word(word: str) -> bool:
    return (
        word.startswith("to=")
        or _GLUED_WORDS.fullmatch(word) is not None
        or any(begins_with_role(word, role) for role in Role)
    )


def is_given_up_header(text: str, tools: frozenset[str]) -> bool:
    """True for whole words of a header, however misspelt; the name in a recipient may be several."""
    name = cut_to(text)
    return all(_is_header_like(word, tools) for word in _split_words(text)) or (
        name != text and find_alike(name, tools) is not None
    )


def is_cut_header(text: str, tools: frozenset[str], any_name: bool) -> bool:
    """True for words of a header, however misspelt, the last of which the end of the stream may have cut off.

    `any_name`: a role or a channel is due, so that the first may be any one word.
    """
    words = [_EDGE.sub("", word).removeprefix(Role.ASSISTANT) for word in _split_words(text)]
    if any_name and words and _NAME_LIKE.fullmatch(words[0]):
        del words[0]
    if not words:
        return True
    *before, last = words
    whole = all(_is_header_like(word, tools) for word in before)
    whole = whole and (
        _is_header_like(last, tools) or is_markup_beginning(last, started=True) or begins_name(last, tools)
    )
    return whole or is_given_up_header(text, tools)


def _split_words(text: str) -> list[str]:
    """A recipient is one word, even if a space stands before its name."""
    return text.replace("to= ", "to=").split()


def _is_header_like(word: str, tools: frozenset[str]) -> bool:
    return (
        is_markup(word)
        or word in ("to", "recipient", "functions")
        or cut_to(word) != word
        or is_tool_word(word, tools)
        or find_alike(word, tools) is not None
    )


def split_stripped(text: str) -> list[tuple[list[Section], str]]:
    """Header sections and content of each message in a text that lost its special tokens; one item: it did not."""
    parts = _STRIPPED.split(text)
    if len(parts) == 1:
        if _STRIPPED_CALL.match(text):
            return [split_headless([(None, ""), (CHANNEL, text)])]
        return [([(None, "")], text)]  # a bare answer: none of its words is a header
    out = [split_headless([(None, ""), (CHANNEL, part)]) for part in parts]
    if not _LEADING_CHANNEL.match(parts[0]):
        out[0] = ([(None, ""), (CHANNEL, ANALYSIS)], parts[0])
    return [item for item, part in zip(out, parts, strict=True) if part]


def begins_with_role(word: str, role: Role) -> bool:
    return (
        word == role
        or word.startswith((f"{role}:", role * 2, f"{role}to="))
        or word in {role + name for name in CHANNELS}
    )


def guess_channel(raw: str) -> str | None:
    """The channel meant by `raw`: its own name, the last name inside it, or the one it is the beginning of."""
    if raw in CHANNELS:
        return raw
    lower = raw.lower()
    inside = max(CHANNELS, key=lower.rfind)
    if inside in lower:
        return inside
    return next((name for name in CHANNELS if len(lower) >= 3 and name.startswith(lower)), None)


def _match_name(text: str, at: int, tools: frozenset[str]) -> int:
    found = _BARE_NAME.match(text, at)
    meant = found and (find_declared(found[1], tools) or find_alike(found[1], tools))
    return found.end() if found and meant else at


def _measure_channel_prefix(text: str) -> int:
    """Length of `text` if it is nothing but the beginning of a channel's name."""
    return len(text) if guess_channel(text.strip()) else 0


def _match_end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
