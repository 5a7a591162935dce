"""Ollama's Modelfile: its grammar read as Ollama reads it, and values written so that they come back the same.

    COMMAND VALUE        one line, or a value in "..." or \"\"\"...\"\"\" that may run over several

What Ollama does silently is kept as a fact of the command: characters that it drops, the line on which a value really
ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptoss_adapters.errors import BadInput

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
    """`name` in lower case; `key` is the parameter's name or the message's role; `dropped` are characters that
    Ollama leaves out.
    """

    name: str
    value: str
    line: int
    key: str = ""
    quote: str = ""
    value_line: int = 0
    dropped: tuple[tuple[int, str], ...] = ()


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
        errors.append(Finding(max(reader.line, 1), "no-from", "no FROM line"))
    return commands, errors


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)
        self.lines = [line for line in self.lines if line]
        self.at = 0
        self.previous: Command | None = None

    @property
    def line(self) -> int:
        return self.at + 1 if self.at < len(self.lines) else len(self.lines)

    def skip(self) -> bool:
        """Past blank lines and comments; False at the end."""
        while self.at < len(self.lines) and (
            not self.lines[self.at].strip() or self.lines[self.at].lstrip().startswith("#")
        ):
            self.at += 1
        return self.at < len(self.lines)

    def skip_line(self) -> None:
        self.at += 1

    def read_command(self) -> Command:
        line = self.line
        text = self.lines[self.at].lstrip(" \t")
        match = _NAME.match(text)
        word = match[0] if match else ""
        rest = text[len(word) :]
        self._check_name(word, rest)
        name = word.lower()
        key = ""
        if name in _WORD:
            key, rest = self._read_key(name, rest.lstrip(" \t"))
        self.lines[self.at] = rest
        made = self._read_value(name, key, line)
        self.previous = made
        return made

    def _check_name(self, word: str, rest: str) -> None:
        hint = ""
        if self.previous and self.previous.quote and self.previous.value_line == self.at:
            hint = (
                f"; the {self.previous.name.upper()} value ended on the line before, which ends in "
                f"{self.previous.quote}"
            )
        if word.lower() not in COMMANDS:
            shown = (word + rest).strip()[:40]
            known = ", ".join(c.upper() for c in COMMANDS)
            raise self._make_error("unknown-command", f"{shown!r} is no command (expected {known}){hint}")
        if not rest[:1] or rest[0] not in " \t":
            shown = rest.strip("\r\n")[:1]
            raise self._make_error(
                "command-name",
                f"{word.upper()} is followed by {shown!r}, not by a space{hint}"
                if shown
                else f"{word.upper()} has no value on its line",
            )

    def _read_key(self, name: str, text: str) -> tuple[str, str]:
        match = _WORD[name].match(text)
        key = match[0] if match else ""
        what = "parameter" if name == "parameter" else "role"
        if not key or text[len(key) : len(key) + 1] not in (" ", "\t"):
            raise self._make_error(
                "no-value" if key else f"{name}-name", f"{name.upper()} needs a {what} and, after a space, a value"
            )
        if name == "message" and key not in ROLES:
            raise self._make_error("message-role", f"unknown role {key!r} (expected {', '.join(ROLES)})")
        return key, text[len(key) :]

    def _read_value(self, name: str, key: str, line: int) -> Command:
        text = ""
        while True:
            if self.at == len(self.lines):
                raise ModelfileError(
                    Finding(
                        line,
                        "unterminated",
                        f"the value of {name.upper()} that begins here has no closing quotes at the end of a line",
                    )
                )
            text += self.lines[self.at]
            self.at += 1
            quote, inner = _unquote(text.strip())
            if inner is not None:
                break
        kept = "".join(c for c in inner if _is_kept(c))
        dropped = tuple((line + inner[:i].count("\n"), c) for i, c in enumerate(inner) if not _is_kept(c))
        if not kept.strip() and name not in ("system", "license", "message"):
            raise ModelfileError(Finding(line, "empty-value", f"{name.upper()} has no value"))
        return Command(name, kept, line, key, quote, self.at, dropped)

    def _make_error(self, rule: str, what: str) -> ModelfileError:
        return ModelfileError(Finding(self.line, rule, what))


def _unquote(text: str) -> tuple[str, str | None]:
    """(quote, the value), or None as value while the closing quote is missing."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return quote, text[len(quote) : -len(quote)] if closed else None
    return "", text


def _is_kept(character: str) -> bool:
    return character.isprintable() or character in "\t\n\r"


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
