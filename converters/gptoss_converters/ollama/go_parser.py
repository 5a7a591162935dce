"""Go's text/template, as far as model templates use it: text to a tree, with the line of whatever Go would refuse.

Used to check a Modelfile's TEMPLATE, and, with `go_execute.py`, to render our own without Go. Source: the
documentation of Go's text/template. Left out: complex numbers, character constants, and `{{block}}`.
"""

from __future__ import annotations

import re

from gptoss_converters.ollama.go_lexer import Token, split_items, split_tokens, unquote
from gptoss_converters.ollama.go_nodes import (
    Action,
    Branch,
    Call,
    Dot,
    Fields,
    Include,
    Jump,
    Literal,
    Node,
    Operand,
    Pipeline,
    Template,
    TemplateError,
    Variable,
)

_COMPARISONS = frozenset({"and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge"})
_TEXTS = frozenset({"html", "js", "urlquery", "print", "printf", "println"})
BUILTINS = _COMPARISONS | _TEXTS | {"len", "index", "slice", "call"}
OLLAMA_FUNCTIONS = frozenset({"json", "currentDate", "yesterdayDate", "toTypeScriptType"})
CONSTANTS = {"true": True, "false": False, "nil": None}
_KEYWORDS = {"if", "range", "with"}


def parse(text: str, functions: frozenset[str] = OLLAMA_FUNCTIONS) -> Template:
    """The tree of a template. Raises TemplateError for what Go's parser refuses; `functions` are known besides the
    built-in ones.
    """
    return _Parser(text, functions).run()


class _Parser:
    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self.items = split_items(text)
        self.at = 0
        self.functions = functions | BUILTINS
        self.template = Template([])
        self.variables = ["$"]
        self.loops = 0
        self.line = 1

    def run(self) -> Template:
        body, end = self._parse_list(top=True)
        if end is not None:
            raise TemplateError(f"unexpected {{{{{end}}}}}", self.line)
        self.template.body = body
        return self.template

    def _parse_list(self, top: bool = False) -> tuple[list[Node], str | None]:
        """Nodes up to {{end}} or {{else ...}}, whose text is returned, or to the end of the text."""
        nodes: list[Node] = []
        while self.at < len(self.items):
            item = self.items[self.at]
            self.at += 1
            self.line = item.line
            if not item.is_action:
                nodes.append(item.text)
                continue
            word = next(iter(item.text.split()), "")
            if word in ("end", "else"):
                return nodes, item.text.strip()
            if node := self._parse_action(word, item.text, top):
                nodes.append(node)
        return nodes, None

    def _parse_action(self, word: str, text: str, top: bool) -> Node | None:
        line = self.line
        if word in _KEYWORDS:
            return self._parse_branch(word, text.strip()[len(word) :])
        if word == "define":
            self._parse_define(text, top)
            return None
        if word == "template":
            return self._parse_include(text)
        if word in ("break", "continue"):
            if not self.loops:
                raise TemplateError(f"{{{{{word}}}}} outside {{{{range}}}}", line)
            return Jump(word)
        return Action(self._parse_pipeline(text), line)

    def _parse_branch(self, kind: str, head: str) -> Branch:
        line = self.line
        depth = len(self.variables)
        pipeline = self._parse_pipeline(head, ranging=kind == "range")
        self.loops += kind == "range"
        body, end = self._parse_list()
        self.loops -= kind == "range"
        otherwise: list[Node] = []
        if end is None:
            raise TemplateError(f"{{{{{kind}}}}} without {{{{end}}}}", line)
        rest = end.removeprefix("else").strip() if end.startswith("else") else ""
        if rest:
            inner, _, head = rest.partition(" ")
            if inner != kind or kind == "range":
                raise TemplateError(f"unexpected {{{{else {inner}}}}} after {{{{{kind}}}}}", self.line)
            otherwise = [self._parse_branch(inner, head)]
        elif end == "else":
            otherwise, end = self._parse_list()
            if end != "end":
                raise TemplateError(f"expected {{{{end}}}} after {{{{else}}}} of {{{{{kind}}}}}", self.line)
        elif end != "end":
            raise TemplateError(f"unexpected {{{{{end}}}}}", self.line)
        del self.variables[depth:]
        return Branch(kind, pipeline, body, otherwise, line)

    def _parse_define(self, text: str, top: bool) -> None:
        line = self.line
        tokens = split_tokens(text, self.line)
        if not top or len(tokens) != 2 or tokens[1].kind != "string":
            raise TemplateError("{{define}} takes one quoted name and stands at the top", line)
        outer = self.variables
        self.variables = ["$"]
        body, end = self._parse_list()
        if end != "end":
            raise TemplateError("{{define}} without {{end}}", line)
        self.variables = outer
        self.template.defined[unquote(tokens[1].text)] = body

    def _parse_include(self, text: str) -> Include:
        tokens = split_tokens(text, self.line)
        if len(tokens) < 2 or tokens[1].kind != "string":
            raise TemplateError("{{template}} needs a quoted name", self.line)
        pipeline = _Expression(self, tokens[2:]).parse_pipeline() if len(tokens) > 2 else None
        return Include(unquote(tokens[1].text), pipeline, self.line)

    def _parse_pipeline(self, text: str, ranging: bool = False) -> Pipeline:
        return _Expression(self, split_tokens(text, self.line)).parse_pipeline(ranging)


class _Expression:
    """Recursive descent over the tokens of one action."""

    def __init__(self, parser: _Parser, tokens: list[Token]) -> None:
        self.parser = parser
        self.tokens = tokens
        self.at = 0

    def parse_pipeline(self, ranging: bool = False) -> Pipeline:
        names, assigns = self._parse_declaration(ranging)
        value = self._parse_chain()
        if self.at < len(self.tokens):
            raise self._make_error(f"unexpected {self.tokens[self.at].text!r}")
        if not assigns:
            self.parser.variables += names
        return Pipeline(value, names, assigns)

    def _parse_declaration(self, ranging: bool) -> tuple[tuple[str, ...], bool]:
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
                self._check_declared(name)
        self.at = 2 * count
        return names, assigns

    def _parse_chain(self) -> Operand:
        value = self._parse_command(None)
        while self._next_text() == "|":
            self.at += 1
            value = self._parse_command(value)
        return value

    def _parse_command(self, last: Operand | None) -> Operand:
        token = self._peek_token("missing value for command")
        piped = () if last is None else (last,)
        if token.kind == "word" and token.text not in CONSTANTS:
            self.at += 1
            if token.text not in self.parser.functions:
                raise self._make_error(f"function {token.text!r} not defined")
            return Call(token.text, (*self._parse_arguments(), *piped))
        value = self._parse_operand()
        arguments = (*self._parse_arguments(), *piped)
        if arguments and not isinstance(value, Fields):
            raise self._make_error("can't give argument to non-function")
        return Call("", (value, *arguments)) if arguments else value

    def _parse_arguments(self) -> list[Operand]:
        arguments = []
        while self.at < len(self.tokens) and self._next_text() not in ("|", ")"):
            arguments.append(self._parse_operand())
        return arguments

    def _parse_operand(self) -> Operand:
        token = self._peek_token("missing value")
        self.at += 1
        base: Operand
        if token.kind == "string":
            base = Literal(unquote(token.text))
        elif token.kind == "number":
            base = Literal(_parse_number(token.text))
        elif token.kind == "variable":
            self._check_declared(token.text)
            base = Variable(token.text)
        elif token.kind == "field":
            self.at -= 1
            base = Dot()
        elif token.text == ".":
            return Dot()
        elif token.text == "(":
            base = self._parse_chain()
            if self._next_text() != ")":
                raise self._make_error("unclosed left paren")
            self.at += 1
        else:
            base = self._parse_word(token.text)
        return self._parse_fields(base)

    def _parse_word(self, text: str) -> Operand:
        if text in CONSTANTS:
            return Literal(CONSTANTS[text])
        if text in self.parser.functions:
            return Call(text, ())
        raise self._make_error(f"function {text!r} not defined" if text.isidentifier() else f"unexpected {text!r}")

    def _parse_fields(self, base: Operand) -> Operand:
        names: list[str] = []
        for token in self.tokens[self.at :]:
            joined = not token.spaced or (not names and base == Dot())
            if token.kind != "field" or not joined:
                break
            names.append(token.text[1:])
        self.at += len(names)
        if names and base in (Dot(), Variable("$")):
            self.parser.template.fields.add(names[0])
        return Fields(base, tuple(names)) if names else base

    def _check_declared(self, name: str) -> None:
        if name not in self.parser.variables:
            raise self._make_error(f"undefined variable {name!r}")

    def _peek_token(self, otherwise: str) -> Token:
        if self.at >= len(self.tokens):
            raise self._make_error(otherwise)
        return self.tokens[self.at]

    def _next_text(self) -> str | None:
        return self.tokens[self.at].text if self.at < len(self.tokens) else None

    def _make_error(self, what: str) -> TemplateError:
        return TemplateError(what, self.parser.line)


def _parse_number(text: str) -> int | float:
    is_float = re.search(r"[.eE]", text) and "x" not in text.lower()
    return float(text) if is_float else int(text, 0)
