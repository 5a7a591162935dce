"""Go's text/template, as far as model templates use it: text to a tree, with the line of whatever Go would refuse.

Used to check a Modelfile's TEMPLATE, and, with `go_template_run.py`, to render our own without Go. Source: the
documentation of Go's text/template. Left out: complex numbers, character constants, and `{{block}}`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from gptoss_adapters.errors import BadInput

BUILTINS = frozenset(
    {
        "and",
        "or",
        "not",
        "len",
        "index",
        "slice",
        "html",
        "js",
        "urlquery",
        "print",
        "printf",
        "println",
        "call",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    }
)
OLLAMA_FUNCTIONS = frozenset({"json", "currentDate", "yesterdayDate", "toTypeScriptType"})
_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)(\s-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*?(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?))"""
    r"""|(?P<variable>\$\w*)|(?P<field>\.[A-Za-z_]\w*)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|=|\||,|\(|\)|\.)"""
)
_KEYWORDS = {"if", "range", "with"}


class TemplateError(BadInput):
    """A template that Go refuses; `line` counts from 1 within the template."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"line {line}: {what}")
        self.reason, self.line = what, line


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


class _Item(NamedTuple):
    """Text, or what stands between the braces of an action."""

    text: str
    is_action: bool
    line: int


class _Token(NamedTuple):
    kind: str
    text: str
    spaced: bool  # white space before it


def parse(text: str, functions: frozenset[str] = OLLAMA_FUNCTIONS) -> Template:
    """The tree of a template. Raises TemplateError for what Go's parser refuses; `functions` are known besides the
    built-in ones.
    """
    return _Parser(text, functions).run()


class _Parser:
    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self.items, self.at = _items(text), 0
        self.functions = functions | BUILTINS
        self.template = Template([])
        self.variables, self.loops, self.line = ["$"], 0, 1

    def run(self) -> Template:
        body, end = self._list(top=True)
        if end is not None:
            raise TemplateError(f"unexpected {{{{{end}}}}}", self.line)
        self.template.body = body
        return self.template

    def _list(self, top: bool = False) -> tuple[list[Node], str | None]:
        """Nodes up to {{end}} or {{else ...}}, whose text is returned, or to the end of the text."""
        nodes: list[Node] = []
        while self.at < len(self.items):
            item = self.items[self.at]
            self.at, self.line = self.at + 1, item.line
            if not item.is_action:
                nodes.append(item.text)
                continue
            word = item.text.split(None, 1)[0] if item.text.split() else ""
            if word in ("end", "else"):
                return nodes, item.text.strip()
            if node := self._action(word, item.text, top):
                nodes.append(node)
        return nodes, None

    def _action(self, word: str, text: str, top: bool) -> Node | None:
        line = self.line
        if word in _KEYWORDS:
            return self._branch(word, text.strip()[len(word) :])
        if word == "define":
            self._define(text, top)
            return None
        if word == "template":
            return self._include(text)
        if word in ("break", "continue"):
            if not self.loops:
                raise TemplateError(f"{{{{{word}}}}} outside {{{{range}}}}", line)
            return Jump(word)
        return Action(self._pipeline(text), line)

    def _branch(self, kind: str, head: str) -> Branch:
        line, depth = self.line, len(self.variables)
        pipeline = self._pipeline(head, ranging=kind == "range")
        self.loops += kind == "range"
        body, end = self._list()
        self.loops -= kind == "range"
        otherwise: list[Node] = []
        if end is None:
            raise TemplateError(f"{{{{{kind}}}}} without {{{{end}}}}", line)
        rest = end.removeprefix("else").strip() if end.startswith("else") else ""
        if rest:
            inner, _, head = rest.partition(" ")
            if inner != kind or kind == "range":
                raise TemplateError(f"unexpected {{{{else {inner}}}}} after {{{{{kind}}}}}", self.line)
            otherwise = [self._branch(inner, head)]
        elif end == "else":
            otherwise, end = self._list()
            if end != "end":
                raise TemplateError(f"expected {{{{end}}}} after {{{{else}}}} of {{{{{kind}}}}}", self.line)
        elif end != "end":
            raise TemplateError(f"unexpected {{{{{end}}}}}", self.line)
        del self.variables[depth:]
        return Branch(kind, pipeline, body, otherwise, line)

    def _define(self, text: str, top: bool) -> None:
        line = self.line
        tokens = self._tokens(text)
        if not top or len(tokens) != 2 or tokens[1].kind != "string":
            raise TemplateError("{{define}} takes one quoted name and stands at the top", line)
        outer, self.variables = self.variables, ["$"]
        body, end = self._list()
        if end != "end":
            raise TemplateError("{{define}} without {{end}}", line)
        self.variables = outer
        self.template.defined[_unquote(tokens[1].text)] = body

    def _include(self, text: str) -> Include:
        tokens = self._tokens(text)
        if len(tokens) < 2 or tokens[1].kind != "string":
            raise TemplateError("{{template}} needs a quoted name", self.line)
        pipeline = _Expression(self, tokens[2:]).pipeline() if len(tokens) > 2 else None
        return Include(_unquote(tokens[1].text), pipeline, self.line)

    def _pipeline(self, text: str, ranging: bool = False) -> Pipeline:
        return _Expression(self, self._tokens(text)).pipeline(ranging)

    def _tokens(self, text: str) -> list[_Token]:
        tokens, at, spaced = [], 0, True
        while at < len(text):
            match = _TOKEN.match(text, at)
            if not match:
                raise TemplateError(f"unexpected {text[at : at + 20].strip()!r} in an action", self.line)
            if match.lastgroup:
                tokens.append(_Token(match.lastgroup, match[0], spaced))
            spaced, at = not match.lastgroup, match.end()
        return tokens


class _Expression:
    """Recursive descent over the tokens of one action."""

    def __init__(self, parser: _Parser, tokens: list[_Token]) -> None:
        self.parser, self.tokens, self.at = parser, tokens, 0

    def pipeline(self, ranging: bool = False) -> Pipeline:
        names, assigns = self._declared(ranging)
        value = self._chain()
        if self.at < len(self.tokens):
            raise self._error(f"unexpected {self.tokens[self.at].text!r}")
        if not assigns:
            self.parser.variables += names
        return Pipeline(value, names, assigns)

    def _declared(self, ranging: bool) -> tuple[tuple[str, ...], bool]:
        texts = [t.text for t in self.tokens]
        count = 2 if ranging and texts[1:2] == [","] else 1
        if (
            not self.tokens
            or self.tokens[0].kind != "variable"
            or texts[2 * count - 1 : 2 * count] not in ([":="], ["="])
        ):
            return (), False
        names = tuple(texts[0 : 2 * count : 2])
        assigns = texts[2 * count - 1] == "="
        if assigns:
            for name in names:
                self._known(name)
        self.at = 2 * count
        return names, assigns

    def _chain(self) -> Operand:
        value = self._command(None)
        while self._next() == "|":
            self.at += 1
            value = self._command(value)
        return value

    def _command(self, last: Operand | None) -> Operand:
        token = self._peek("missing value for command")
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            self.at += 1
            if token.text not in self.parser.functions:
                raise self._error(f"function {token.text!r} not defined")
            arguments = []
            while self.at < len(self.tokens) and self._next() not in ("|", ")"):
                arguments.append(self._operand())
            return Call(token.text, (*arguments, *((last,) if last is not None else ())))
        value = self._operand()
        arguments = []
        while self.at < len(self.tokens) and self._next() not in ("|", ")"):
            arguments.append(self._operand())
        arguments += [last] if last is not None else []
        if arguments and not isinstance(value, Fields):
            raise self._error("can't give argument to non-function")
        return Call("", (value, *arguments)) if arguments else value

    def _operand(self) -> Operand:
        token = self._peek("missing value")
        self.at += 1
        base: Operand
        if token.kind == "string":
            base = Literal(_unquote(token.text))
        elif token.kind == "number":
            base = Literal(
                float(token.text)
                if re.search(r"[.eE]", token.text) and "x" not in token.text.lower()
                else int(token.text, 0)
            )
        elif token.kind == "variable":
            self._known(token.text)
            base = Variable(token.text)
        elif token.kind == "field":
            self.at -= 1
            base = Dot()
        elif token.text == ".":
            return Dot()
        elif token.text == "(":
            base = self._chain()
            if self._next() != ")":
                raise self._error("unclosed left paren")
            self.at += 1
        else:
            base = self._word(token.text)
        return self._fields(base)

    def _word(self, text: str) -> Operand:
        constants = {"true": True, "false": False, "nil": None}
        if text in constants:
            return Literal(constants[text])
        if text in self.parser.functions:
            return Call(text, ())
        raise self._error(f"function {text!r} not defined" if text.isidentifier() else f"unexpected {text!r}")

    def _fields(self, base: Operand) -> Operand:
        names: list[str] = []
        while (
            self.at < len(self.tokens)
            and self.tokens[self.at].kind == "field"
            and (not self.tokens[self.at].spaced or (not names and base == Dot()))
        ):
            names.append(self.tokens[self.at].text[1:])
            self.at += 1
        if names and base in (Dot(), Variable("$")):
            self.parser.template.fields.add(names[0])
        return Fields(base, tuple(names)) if names else base

    def _known(self, name: str) -> None:
        if name not in self.parser.variables:
            raise self._error(f"undefined variable {name!r}")

    def _peek(self, otherwise: str) -> _Token:
        if self.at >= len(self.tokens):
            raise self._error(otherwise)
        return self.tokens[self.at]

    def _next(self) -> str | None:
        return self.tokens[self.at].text if self.at < len(self.tokens) else None

    def _error(self, what: str) -> TemplateError:
        return TemplateError(what, self.parser.line)


def _items(text: str) -> list[_Item]:
    """Text and actions in turn, with white space removed where a {{- or -}} asks for it."""
    items: list[_Item] = []
    at, line, trim = 0, 1, False
    while at < len(text):
        begin = text.find("{{", at)
        plain = text[at : begin if begin >= 0 else len(text)]
        match = None
        if begin >= 0:
            match = _COMMENT.match(text, begin) or _action_at(text, begin)
            if not match:
                raise TemplateError("unclosed action", line + plain.count("\n"))
        shown = plain.lstrip() if trim else plain
        trim = False
        if match and match[0].startswith("{{-"):
            shown = shown.rstrip()
        if shown:
            items.append(_Item(shown, False, line))
        line += plain.count("\n")
        if not match:
            break
        trim = match[0].endswith("-}}")
        if not _COMMENT.fullmatch(match[0]):
            items.append(_Item(match[2], True, line))
        line += match[0].count("\n")
        at = match.end()
    return items


def _action_at(text: str, begin: int) -> re.Match[str] | None:
    """The action at `begin`; braces inside its strings do not end it."""
    end = begin
    while True:
        end = text.find("}}", end)
        if end < 0:
            return None
        end += 2
        match = _ACTION.fullmatch(text, begin, end)
        quotes = re.sub(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`', "", text[begin:end])
        if match and '"' not in quotes and "`" not in quotes:
            return match


def _unquote(text: str) -> str:
    value: str = text[1:-1] if text[0] == "`" else json.loads(text)
    return value
