"""Regular expressions as clients write them (Rust's, Python's and JavaScript's common part) -> `regular`.

The whole text keeps to the expression; ``^`` and ``$`` may stand at its ends. Where dialects differ the narrower
reading counts: ``\\d``, ``\\w`` and ``\\s`` are ASCII, ``\\D``, ``\\W`` and ``\\S`` leave out all that is such a
character anywhere in Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from gptoss_harmony.grammars.regular import (
    EVERY,
    LAST,
    Chars,
    Either,
    Joined,
    NotEnforced,
    Ranges,
    Regular,
    Repeated,
    exclude,
    unite,
)

_TIMES = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\((?:\?(?:P?<\w+>|([a-z]*)(?:-([a-z]+))?:))?")
_FLAGS = re.compile(r"\(\?([a-z]+)\)")
_HEX = re.compile(r"\{([0-9A-Fa-f]{1,6})\}")
_POSIX = re.compile(r"\[:(\w+):\]")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_MOST_TIMES = 10_000
_LINE_END = ((10, 10),)
_DIGITS: Ranges = ((48, 57),)
_UPPER: Ranges = ((65, 90),)
_LOWER: Ranges = ((97, 122),)
_WORDS = unite(_DIGITS, _UPPER, _LOWER, ((95, 95),))
_SPACES: Ranges = ((9, 13), (32, 32))
_CLASSES = {"d": _DIGITS, "w": _WORDS, "s": _SPACES}
_POSIX_CLASSES = {
    "alpha": unite(_UPPER, _LOWER),
    "digit": _DIGITS,
    "alnum": unite(_DIGITS, _UPPER, _LOWER),
    "upper": _UPPER,
    "lower": _LOWER,
    "space": _SPACES,
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "xdigit": unite(_DIGITS, ((65, 70), (97, 102))),
    "word": _WORDS,
}
_IS: dict[str, Callable[[str], bool]] = {
    "d": lambda char: unicodedata.category(char) == "Nd",
    "w": lambda char: char.isalnum() or unicodedata.category(char)[0] == "M" or unicodedata.category(char) == "Pc",
    "s": str.isspace,
}
_NOTHING = Joined(())


def parse_regex(text: str, flags: str = "") -> Regular:
    """Raises NotEnforced for what is no regular expression, or has no rules here."""
    reader = _Reader(text, flags)
    node = reader.read_choice()
    if reader.at < len(text):
        raise reader.refuse("a group that was never opened is closed")
    return node


@lru_cache
def _find_chars(kind: str) -> Ranges:
    """All of Unicode that is a digit (d), a word's (w), a space (s), or of a general category such as Lu."""
    test = _IS.get(kind) or (lambda char: unicodedata.category(char).startswith(kind))
    return unite(tuple((code, code) for low, high in EVERY for code in range(low, high + 1) if test(chr(code))))


class _Reader:
    def __init__(self, text: str, flags: str) -> None:
        self.at = 0
        self._text = text
        self._depth = 0
        self._wide = False  # is the wider reading of a class the one that counts?
        self._flags: set[str] = set()
        self._set_flags(flags)

    def refuse(self, words: str) -> NotEnforced:
        return NotEnforced(f"{words} (at character {self.at} of {self._text[:60]!r})")

    def _set_flags(self, flags: str) -> None:
        if unknown := set(flags) - set("ismu"):
            raise self.refuse(f"the flags {sorted(unknown)} are not read here")
        self._flags |= set(flags)

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        found = self._peek(text)
        self.at += len(text) if found else 0
        return found

    def read_choice(self) -> Regular:
        ways = [self._read_sequence()]
        while self._take("|"):
            ways.append(self._read_sequence())
        return ways[0] if len(ways) == 1 else Either(tuple(ways))

    def _read_sequence(self) -> Regular:
        parts: list[Regular] = []
        while self.at < len(self._text) and not self._peek("|") and not self._peek(")"):
            if found := _FLAGS.match(self._text, self.at):
                self._set_flags(found[1])
                self.at = found.end()
            elif not self._skip_anchor(first=not parts):
                parts.append(self._read_repeats(self._read_atom()))
        return parts[0] if len(parts) == 1 else Joined(tuple(parts))

    def _skip_anchor(self, first: bool) -> bool:
        """At the ends of the text, where it says nothing new."""
        begins = next((mark for mark in ("^", "\\A") if self._peek(mark)), None)
        ends = next((mark for mark in ("$", "\\z", "\\Z") if self._peek(mark)), None)
        mark = begins or ends
        if mark is None:
            return False
        after = self._text[self.at + len(mark) :]
        if (begins and (not first or self._starts_late())) or (ends and re.match(r"\)*(\||$)", after) is None):
            raise self.refuse(f"{mark!r} inside the text is not read here")
        self.at += len(mark)
        return True

    def _starts_late(self) -> bool:
        """Is there something before this group? Before an alternative of the outermost one there is nothing."""
        return self._depth > 0 and re.fullmatch(r"(\(|\?:|\||\^|\\A)*", self._text[: self.at]) is None

    def _read_atom(self) -> Regular:
        if self._peek("("):
            return self._read_group()
        if self._take("["):
            return Chars(self._fold(self._read_class()))
        if self._take("."):
            return Chars(EVERY if "s" in self._flags else exclude(EVERY, _LINE_END))
        if self._take("\\"):
            return Chars(self._fold(self._read_escape()))
        char = self._text[self.at]
        if char in "*+?":
            raise self.refuse("there is nothing to repeat")
        self.at += 1
        return Chars(self._fold(((ord(char), ord(char)),)))

    def _read_group(self) -> Regular:
        found = _GROUP.match(self._text, self.at)
        if found is None or (found.end() == self.at + 1 and self._text.startswith("(?", self.at)):
            raise self.refuse("a look around, or another group that is not regular, is not read here")
        self.at = found.end()
        before = set(self._flags)
        self._set_flags(found[1] or "")
        self._flags -= set(found[2] or "")
        self._depth += 1
        if self._depth > 100:
            raise self.refuse("groups are nested too deeply")
        inner = self.read_choice()
        if not self._take(")"):
            raise self.refuse("a group is not closed")
        self._depth -= 1
        self._flags = before
        return inner

    def _read_repeats(self, node: Regular) -> Regular:
        while (times := self._read_times()) is not None:
            low, high = times
            if (high is not None and low > high) or max(low, high or 0) > _MOST_TIMES:
                raise self.refuse(f"it cannot be repeated so often ({low} to {high} times)")
            node = Repeated(node, low, high)
            if self._take("+"):
                raise self.refuse("a possessive repetition is not read here")
            self._take("?")  # how eager it is does not change what it holds
        return node

    def _read_times(self) -> tuple[int, int | None] | None:
        for mark, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(mark):
                return times
        found = _TIMES.match(self._text, self.at)
        if found is None or not (found[1] or found[3]):
            return None  # a brace that is only a character
        self.at = found.end()
        low = int(found[1] or 0)
        return low, (int(found[3]) if found[3] else None) if found[2] else low

    def _read_class(self) -> Ranges:
        negated = self._take("^")
        self._wide = negated  # what is taken away is more, so that what is left is less
        chars: Ranges = ()
        first = True
        while first or not self._peek("]"):
            if self.at >= len(self._text):
                raise self.refuse("a class of characters is not closed")
            if any(self._peek(mark) for mark in ("&&", "--", "~~")):
                raise self.refuse("an operation on classes of characters is not read here")
            chars = unite(chars, self._read_range())
            first = False
        self.at += 1
        self._wide = False
        if negated and "i" in self._flags:
            chars = self._fold(chars)
        return exclude(EVERY, chars) if negated else chars

    def _read_range(self) -> Ranges:
        low = self._read_class_item()
        single = len(low) == 1 and low[0][0] == low[0][1]
        if not single or not self._peek("-") or self._text[self.at + 1 : self.at + 2] in ("]", ""):
            return low
        self.at += 1
        high = self._read_class_item()
        if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
            raise self.refuse("a range of characters ends before it begins")
        return exclude(((low[0][0], high[0][0]),), ((0xD800, 0xDFFF),))

    def _read_class_item(self) -> Ranges:
        if found := _POSIX.match(self._text, self.at):
            if found[1] not in _POSIX_CLASSES:
                raise self.refuse(f"the class {found[1]!r} is not read here")
            self.at = found.end()
            return _POSIX_CLASSES[found[1]]
        if self._take("\\"):
            return ((8, 8),) if self._take("b") else self._read_escape()
        char = self._text[self.at]
        if char == "[":
            raise self.refuse("a class inside a class of characters is not read here")
        self.at += 1
        return ((ord(char), ord(char)),)

    def _read_escape(self) -> Ranges:
        """What follows a backslash."""
        char = self._text[self.at : self.at + 1]
        self.at += 1
        if char in ("p", "P"):
            return self._read_category(char == "P")
        if char.lower() in _CLASSES and char:
            return self._read_shorthand(char)
        if char in _HEX_DIGITS:
            return self._read_code(_HEX_DIGITS[char])
        if char in _CONTROLS:
            char = _CONTROLS[char]
        elif not char or char.isalnum():
            self.at -= 1
            raise self.refuse(f"'\\{char}' is not read here")
        return ((ord(char), ord(char)),)

    def _read_shorthand(self, char: str) -> Ranges:
        negated = char not in _CLASSES
        chars = _CLASSES[char.lower()] if negated == self._wide else _find_chars(char.lower())
        return exclude(EVERY, chars) if negated else chars

    def _read_code(self, n_digits: int) -> Ranges:
        found = _HEX.match(self._text, self.at)
        digits = found[1] if found else self._text[self.at : self.at + n_digits]
        if not re.fullmatch(r"[0-9A-Fa-f]+", digits) or not (found or len(digits) == n_digits):
            raise self.refuse("a code of a character is not complete")
        code = int(digits, 16)
        if code > LAST or 0xD800 <= code <= 0xDFFF:
            raise self.refuse(f"U+{code:04X} is no character")
        self.at = found.end() if found else self.at + n_digits
        return ((code, code),)

    def _read_category(self, negated: bool) -> Ranges:
        found = re.compile(r"\{(\^?)([A-Z][a-z]?)\}|([A-Z])").match(self._text, self.at)
        if found is None:
            raise self.refuse("a property of characters that is no general category (such as Lu) is not read here")
        self.at = found.end()
        chars = exclude(_find_chars(found[2] or found[3]), ((0xD800, 0xDFFF),))
        return exclude(EVERY, chars) if negated != bool(found[1]) else chars

    def _fold(self, chars: Ranges) -> Ranges:
        """With the other case of each letter, if case does not matter; of large sets the ASCII letters."""
        if "i" not in self._flags:
            return chars
        few = sum(high - low + 1 for low, high in chars) <= 256
        codes = [c for low, high in chars for c in (range(low, high + 1) if few else range(low, min(high, 127) + 1))]
        other = {swapped for c in codes for swapped in (chr(c).lower(), chr(c).upper()) if len(swapped) == 1}
        return unite(chars, tuple((ord(char), ord(char)) for char in other))
