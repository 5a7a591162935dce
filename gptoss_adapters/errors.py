"""The errors a user can meet: one line each, with the exit code the command-line tools give.

The line reads `file: tensor: what is wrong (expected X, got Y): what to do`; parts that do not apply are left out.
"""

from __future__ import annotations

from pathlib import Path


class GptOssError(Exception):
    """Base of every error that is the user's to mend; the command-line tools print its text as one line."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        tensor: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.file, self.tensor = what, None if file is None else str(file), tensor
        self.expected, self.got, self.hint = expected, got, hint
        super().__init__(self._line())

    def _line(self) -> str:
        facts = [f"{word} {_short(v)}" for word, v in (("expected", self.expected), ("got", self.got)) if v is not None]
        what = self.what + (f" ({', '.join(facts)})" if facts else "")
        parts = [self.file, self.tensor, what, self.hint]
        return ": ".join(_one_line(p) for p in parts if p)


class CheckFailed(GptOssError):
    """A check that ran and said no (verify, parity)."""

    exit_code = 1


class UsageError(GptOssError):
    """Options that do not go together, or an argument outside its range."""

    exit_code = 2


class BadInput(GptOssError):
    """A file that is damaged, inconsistent, unsupported, or not what it says it is."""

    exit_code = 3


class NotComparable(BadInput):
    """Two things that have no common ground for a comparison."""


class OutputError(GptOssError):
    """Reading or writing failed: permissions, space, a file that is in the way."""

    exit_code = 4


def missing_extra(package: str, extra: str) -> BadInput:
    """The error for an optional dependency that is not installed; names the pip line that brings it."""
    return BadInput(f"{package} is not installed", hint=f'pip install "gptoss-adapters[{extra}]"')


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _one_line(text: str) -> str:
    """Control characters of a hostile name must not reach the terminal, nor break the line in two."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
