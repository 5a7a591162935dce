"""Module names against an adapter's patterns, exactly as PEFT matches them, within a bounded time.

The patterns come from a file. `re` has no limit of time, so it only says whether a pattern is one; `regex`, which
tiktoken brings along, matches it.
"""

from __future__ import annotations

import re
import time

_BUDGET = 2.0  # seconds for all the patterns of an adapter: any sensible one takes microseconds
_LITERAL_BRACE = re.compile(r"(?<!\\)\{(?!\d*,?\d*\})")  # `re` takes it as itself, `regex` as something of its own


class TooSlow(Exception):
    """The patterns took longer than any sensible one."""


class Patterns:
    """Matches patterns; raises re.error for what is none and TooSlow for what does not come to an end."""

    def __init__(self) -> None:
        self.left = _BUDGET

    def match(self, pattern: str, text: str) -> dict[str, str | None] | None:
        """The named groups when `pattern` fits at the beginning of `text`, else None."""
        import regex

        re.compile(pattern)
        begin = time.monotonic()
        try:
            found = regex.match(_LITERAL_BRACE.sub(r"\\{", pattern), text, timeout=max(self.left, 1e-3))
        except TimeoutError:
            raise TooSlow(pattern) from None
        except regex.error as e:
            raise re.error(str(e)) from None
        self.left -= time.monotonic() - begin
        return None if found is None else dict(found.groupdict())

    def fits_suffix(self, pattern: str, name: str) -> bool:
        """The rule of rank_pattern and alpha_pattern: the whole name, or its end from a dot on."""
        return self.match(rf"(.*\.)?({pattern})$", name) is not None

    def fits(self, pattern: str, name: str) -> bool:
        """The rule of target_modules and exclude_modules where they are a string: the whole name."""
        return self.match(rf"(?:{pattern})\Z", name) is not None

    def fits_part(self, pattern: str, name: str) -> bool:
        """The rule of modules_to_save: the module or one that it lies in."""
        return self.match(rf"(^|.*\.){pattern}($|\..*)", name) is not None

    def find_layer(self, name: str, patterns: list[str]) -> int | None:
        """The layer's number in a module's name, after a word that fits one of the patterns, or after any word."""
        tried = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in patterns] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
        for pattern in tried:
            found = self.match(pattern, name)
            if found is not None:
                number = found.get("idx")
                return None if number is None else int(number)
        return None
