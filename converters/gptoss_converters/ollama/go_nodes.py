"""What a parsed template consists of, as Go's text/template has it: text, actions, branches, and what they evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from gptoss_adapters.errors import BadInput


class TemplateError(BadInput):
    """A template that Go refuses; `line` counts from 1 within the template."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"line {line}: {what}")
        self.reason = what
        self.line = line


class NotKnownHere(TemplateError):
    """What Go and Ollama may well run, but this package cannot."""


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Dot:
    """The cursor."""


@dataclass(frozen=True, slots=True)
class Variable:
    name: str  # "$" or "$x"


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments; without a name: a method with its arguments, which only Go can run."""

    name: str
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """base.A.B"""

    base: Operand
    names: tuple[str, ...]


Operand: TypeAlias = Literal | Dot | Variable | Call | Fields


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The last value of a chain; `variables` (range: up to two) are declared, or assigned when `assigns`."""

    value: Operand
    variables: tuple[str, ...] = ()
    assigns: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    pipeline: Pipeline
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    """if, range or with."""

    kind: str
    pipeline: Pipeline
    body: list[Node]
    otherwise: list[Node]
    line: int


@dataclass(frozen=True, slots=True)
class Include:
    """{{template "name" pipeline}}"""

    name: str
    pipeline: Pipeline | None
    line: int


@dataclass(frozen=True, slots=True)
class Jump:
    """break or continue."""

    kind: str


Node: TypeAlias = str | Action | Branch | Include | Jump


@dataclass(slots=True)
class Template:
    """The main body, the bodies of {{define}}, and every first field name that is read anywhere (".Messages" ->
    "Messages").
    """

    body: list[Node]
    defined: dict[str, list[Node]] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
