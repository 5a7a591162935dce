"""Ollama's Modelfile: its grammar read as Ollama reads it, and values written so that they come back the same.

    COMMAND VALUE        one line, or a value in "..." or \"\"\"...\"\"\" that may run over several

What Ollama does silently is kept as a fact of the command: characters that it drops, the line on which a value really
ends.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptoss_adapters.errors import BadInput
from gptoss_converters.ollama.printable import is_printable

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES = ("system", "user", "assistant")
BLANKS = (" ", "\t")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z]*")
_WORD = {"parameter": re.compile(r"[A-Za-z0-9_]+"), "message": re.compile(r"[A-Za-z]+")}


class Finding(NamedTuple):
    """One thing that is wrong (or, for a warning, doubtful) on a line; `rule` is its fixed short name."""

    line: int
    rule: str
    what: str
    warning: bool = False


class ModelfileError(BadInput):
    """A Modelfile that Ollama's parser refuses."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"line {finding.line}: {finding.rule}: {finding.what}")
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Command:
    """`name` in lower case; `key` is the parameter's name or the message's role; `value_line` is where the value ends;
    `dropped` are (line, character) that Ollama leaves out.
    """

    name: str
    value: str
    line: int
    key: str = ""
    quote: str = ""
    value_line: int = 0
    dropped: tuple[tuple[int, str], ...] = ()


def decode(data: bytes) -> tuple[str, int | None]:
    """(the text as Ollama reads the bytes, the line of the first byte that is no UTF-8): UTF-16 after its mark, else
    UTF-8, where whatever is none becomes U+FFFD.
    """
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if data.startswith(mark):
            return data[2:].decode(encoding, "replace"), None
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        return data.decode("utf-8-sig", "replace"), len(_NEWLINE.findall(before)) + 1


def read(text: str) -> list[Command]:
    """The commands of a Modelfile, in order. Raises ModelfileError where Ollama's parser gives up."""
    commands, errors = scan(text)
    if errors:
        raise ModelfileError(errors[0])
    return commands


def scan(text: str) -> tuple[list[Command], list[Finding]]:
    """As `read`, but goes on with the next line after an error, to find them all."""
    reader = _Reader(text.removeprefix("\ufeff"))
    commands = []
    errors = []
    while reader.skip():
        try:
            commands.append(reader.read_command())
        except ModelfileError as error:
            errors.append(error.finding)
            reader.skip_line()
    if not errors and not any(c.name == "from" for c in commands):
        errors.append(Finding(reader.line, "no-from", "no FROM line"))
    return commands, errors


class _Reader:
    """One character after the other, as Ollama's parser goes. `at` is the next one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.previous: Command | None = None
        self._starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]

    @property
    def line(self) -> int:
        """That of the next character, counted from 1; at the end that of the last one."""
        return bisect_right(self._starts, min(self.at, max(len(self.text) - 1, 0)))

    def skip(self) -> bool:
        """Past blanks and comments; False at the end."""
        match = _BETWEEN.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at < len(self.text)

    def skip_line(self) -> None:
        line = self.line
        self.at = self._starts[line] if line < len(self._starts) else len(self.text)

    def read_command(self) -> Command:
        line = self.line
        name = self._read_name()
        key = self._read_key(name) if name in _WORD else ""
        self.previous = self._read_value(name, key, line)
        return self.previous

    def _read_name(self) -> str:
        """The command, in lower case, and the blank behind it. One unprintable character before it is not seen."""
        begin = self.at if is_printable(self.text[self.at]) else self.at + 1
        match = _NAME.match(self.text, begin)
        word = match[0] if match else ""
        end = begin + len(word)
        if word.lower() not in COMMANDS or self._get(end) not in BLANKS:
            raise self._refuse_name(word, _NEWLINE.split(self.text[end : end + 40])[0])
        self.at = end + 1
        return word.lower()

    def _refuse_name(self, word: str, rest: str) -> ModelfileError:
        hint = ""
        if self.previous and self.previous.quote and self.previous.value_line == self.line - 1:
            hint = (
                f"; the {self.previous.name.upper()} value ended on the line before, which ends in "
                f"{self.previous.quote}"
            )
        if word.lower() not in COMMANDS:
            known = ", ".join(c.upper() for c in COMMANDS)
            shown = (word + rest).strip()[:40]
            return self._make_error("unknown-command", f"{shown!r} is no command (expected {known}){hint}")
        if not rest:
            return self._make_error("command-name", f"{word.upper()} has no value on its line")
        return self._make_error("command-name", f"{word.upper()} is followed by {rest[0]!r}, not by a space{hint}")

    def _read_key(self, name: str) -> str:
        """The parameter's name or the role, and the one blank behind it."""
        match = _WORD[name].match(self.text, self.at)
        key = match[0] if match else ""
        behind = self._get(self.at + len(key))
        what = "parameter" if name == "parameter" else "role"
        if not key and behind in BLANKS:
            raise self._make_error(
                f"{name}-name", f"{name.upper()} is followed by more than one blank: Ollama then finds no {what}"
            )
        if behind not in BLANKS:
            raise self._make_error(
                "no-value" if key else f"{name}-name", f"{name.upper()} needs a {what} and, after a space, a value"
            )
        if name == "message" and key not in ROLES:
            raise self._make_error("message-role", f"unknown role {key!r} (expected {', '.join(ROLES)})")
        self.at += len(key) + 1
        return key

    def _read_value(self, name: str, key: str, line: int) -> Command:
        """Up to the first newline at which the value is whole."""
        value = _Value()
        while self.at < len(self.text) and not (self.text[self.at] in "\r\n" and value.is_whole()):
            character = self.text[self.at]
            if _is_kept(character):
                value.keep(character)
            else:
                value.drop(character, self.line)
            self.at += 1
        if not value.is_whole():
            raise ModelfileError(
                Finding(
                    line,
                    "unterminated",
                    f"the value of {name.upper()} that begins here has no closing quotes at the end of a line",
                )
            )
        inner = value.inner()
        if not inner.strip() and name not in ("system", "license", "message"):
            raise ModelfileError(Finding(line, "empty-value", f"{name.upper()} has no value"))
        return Command(name, inner, line, key, value.quote, self.line, value.lost())

    def _get(self, at: int) -> str:
        """The character there; at the end of the text what is no blank."""
        return self.text[at] if at < len(self.text) else "\n"

    def _make_error(self, rule: str, what: str) -> ModelfileError:
        return ModelfileError(Finding(self.line, rule, what))


class _Value:
    """A value as it grows: kept characters, from the first to the last that is no blank, and those dropped between."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.dropped: list[tuple[int, int, str]] = []  # (how many were kept before it, line, character)
        self.begin = -1
        self.end = 0

    @property
    def quote(self) -> str:
        start = "".join(self.kept[self.begin : self.begin + 3]) if self.begin >= 0 else ""
        return '"""' if start == '"""' else start[:1] if start[:1] == '"' else ""

    def drop(self, character: str, line: int) -> None:
        self.dropped.append((len(self.kept), line, character))

    def keep(self, character: str) -> None:
        self.kept.append(character)
        if character not in " \t\r\n":
            self.begin = len(self.kept) - 1 if self.begin < 0 else self.begin
            self.end = len(self.kept)

    def is_whole(self) -> bool:
        """Does it end in the quotes that it began with, if it has any?"""
        quote = self.quote
        if not quote:
            return True
        closes = "".join(self.kept[max(self.end - len(quote), 0) : self.end]) == quote
        return closes and self.end - self.begin >= 2 * len(quote)

    def inner(self) -> str:
        size = len(self.quote)
        return "".join(self.kept[max(self.begin, 0) + size : self.end - size])

    def lost(self) -> tuple[tuple[int, str], ...]:
        """(line, character) of those dropped within the value; around it they are no loss, unless they were all."""
        size = len(self.quote)
        first = self.begin + (size or 1)
        last = self.end - (size or 1) if self.begin >= 0 else len(self.kept)
        return tuple((line, character) for at, line, character in self.dropped if first <= at <= last)


def _is_kept(character: str) -> bool:
    return is_printable(character) or character in "\t\n\r"


# Writing --------------------------------------------------------------------------------------------------------------


def write(commands: Iterable[tuple[str, str]]) -> str:
    """A Modelfile of (COMMAND, value) pairs, where COMMAND may have a second word. Raises BadInput for a value that
    Ollama
    cannot take: it has characters that vanish, or no way to quote it."""
    return "".join(f"{name} {quote(value, name)}\n" for name, value in commands)


def quote(value: str, name: str = "value") -> str:
    """A value as Ollama reads it back unchanged. Raises BadInput."""
    gone = sorted({c for c in value if not _is_kept(c)})
    if gone:
        raise BadInput(
            f"{name} holds characters that Ollama drops without a word",
            got=", ".join(f"U+{ord(c):04X}" for c in gone),
            hint="replace them",
        )
    if value and value == value.strip() and "\n" not in value and "\r" not in value and not value.startswith('"'):
        return value
    for quote in ('"', '"""') if '"' not in value and "\n" not in value else ('"""', '"'):
        written = f"{quote}{value}{quote}"
        if reads_back(written, value):
            return written
    raise BadInput(
        f"{name} has a line that ends in quotes, which would end it",
        hint='reword it so that no line ends in " or in """',
    )


def reads_back(written: str, value: str) -> bool:
    try:
        commands = read(f"FROM x\nSYSTEM {written}\nLICENSE x\n")
    except ModelfileError:
        return False
    return len(commands) == 3 and commands[1].value == value


def collect_parameters(commands: Sequence[Command]) -> Mapping[str, list[str]]:
    """The values of each PARAMETER."""
    found: dict[str, list[str]] = {}
    for command in commands:
        if command.name == "parameter":
            found.setdefault(command.key, []).append(command.value)
    return found
