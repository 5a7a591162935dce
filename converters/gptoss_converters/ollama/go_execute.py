"""Executes a parsed template as Go's text/template does, on plain Python values.

A Go struct is a `Struct` (an unknown field is an error), a map a dict (an unknown key is nil, and `range` goes by
sorted keys). Numbers that came as JSON are floats. A template that does not end by itself is given up.
Texts are bytes while they run: Go's `slice` and `len` count bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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
    NotKnownHere,
    Operand,
    Pipeline,
    Template,
    TemplateError,
    Variable,
)
from gptoss_converters.ollama.go_values import Struct, format_pattern, name_type, show

MAX_STEPS = 1_000_000  # nodes of a template that are run, before it is given up


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def execute(template: Template, data: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]]) -> str:
    """The text of `template` for `data`. Raises TemplateError where Go's execution fails."""
    run = _Run(template, {**_BUILTINS, **functions})
    run.run_body(template.body, _Scope(None, {"$": _to_go(data)}), _to_go(data))
    return b"".join(run.out).decode("utf-8")


class _Scope:
    def __init__(self, outer: _Scope | None, values: dict[str, Any] | None = None) -> None:
        self.outer = outer
        self.values = values or {}

    def find(self, name: str) -> dict[str, Any]:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values
            scope = scope.outer
        raise KeyError(name)


class _Run:
    def __init__(self, template: Template, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.template = template
        self.functions = functions
        self.out: list[bytes] = []
        self.line = 1
        self.steps = 0

    def run_body(self, nodes: Sequence[Node], scope: _Scope, dot: Any) -> None:
        for node in nodes:
            self._step()
            if isinstance(node, str):
                self.out.append(node.encode())
            elif isinstance(node, Action):
                self._run_action(node, scope, dot)
            elif isinstance(node, Branch):
                self._run_branch(node, scope, dot)
            elif isinstance(node, Include):
                self._run_include(node, scope, dot)
            else:
                raise _Break if node == Jump("break") else _Continue

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise NotKnownHere("the template runs too long", self.line)

    def _run_action(self, node: Action, scope: _Scope, dot: Any) -> None:
        self.line = node.line
        value = self._evaluate(node.pipeline.value, scope, dot)
        for name in node.pipeline.variables:
            (scope.find(name) if node.pipeline.assigns else scope.values)[name] = value
        if not node.pipeline.variables:
            self.out.append(show(value))

    def _run_branch(self, node: Branch, scope: _Scope, dot: Any) -> None:
        self.line = node.line
        inner = _Scope(scope)
        value = self._evaluate(node.pipeline.value, scope, dot)
        if node.kind == "range":
            self._run_range(node, inner, value, dot)
            return
        for name in node.pipeline.variables:
            inner.values[name] = value
        if _is_true(value):
            self.run_body(node.body, inner, value if node.kind == "with" else dot)
        else:
            self.run_body(node.otherwise, inner, dot)

    def _run_range(self, node: Branch, scope: _Scope, value: Any, dot: Any) -> None:
        ran = False
        for key, item in self._list_pairs(value):
            ran = True
            self._step()
            inner = _Scope(scope, _bind(node.pipeline, key, item))
            try:
                self.run_body(node.body, inner, item)
            except _Break:
                break
            except _Continue:
                continue
        if not ran:
            self.run_body(node.otherwise, scope, dot)

    def _list_pairs(self, value: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(value, Struct | bytes | bool | float):
            raise TemplateError(f"range can't iterate over a {name_type(value)}", self.line)
        if isinstance(value, int):
            return ((i, i) for i in range(value))
        if isinstance(value, dict):
            return ((k.encode(), value[k]) for k in sorted(value, key=lambda k: k.encode()))
        return enumerate(value or ())

    def _run_include(self, node: Include, scope: _Scope, dot: Any) -> None:
        self.line = node.line
        if node.name not in self.template.defined:
            raise TemplateError(f"template {node.name!r} not defined", node.line)
        value = None if node.pipeline is None else self._evaluate(node.pipeline.value, scope, dot)
        self.run_body(self.template.defined[node.name], _Scope(None, {"$": value}), value)

    def _evaluate(self, operand: Operand, scope: _Scope, dot: Any) -> Any:
        if isinstance(operand, Literal):
            return _to_go(operand.value)
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Variable):
            return scope.find(operand.name)[operand.name]
        if isinstance(operand, Fields):
            return self._read_fields(self._evaluate(operand.base, scope, dot), operand.names)
        return self._call(operand, scope, dot)

    def _read_fields(self, value: Any, names: Sequence[str]) -> Any:
        for name in names:
            if not isinstance(value, dict) or (isinstance(value, Struct) and name not in value):
                raise TemplateError(f"can't evaluate field {name} in type {name_type(value)}", self.line)
            value = value.get(name)
        return value

    def _call(self, call: Call, scope: _Scope, dot: Any) -> Any:
        if call.name in ("and", "or"):
            value: Any = None
            for argument in call.arguments:
                value = self._evaluate(argument, scope, dot)
                if _is_true(value) is (call.name == "or"):
                    break
            return value
        arguments = [self._evaluate(a, scope, dot) for a in call.arguments]
        if call.name not in self.functions:
            raise NotKnownHere(f"{call.name or 'a method with arguments'} cannot be called here", self.line)
        try:
            return self.functions[call.name](*arguments)
        except (TypeError, IndexError, ValueError) as error:
            raise TemplateError(f"error calling {call.name}: {error}", self.line) from None


def _bind(pipeline: Pipeline, key: Any, item: Any) -> dict[str, Any]:
    if len(pipeline.variables) == 2:
        return dict(zip(pipeline.variables, (key, item), strict=True))
    return dict.fromkeys(pipeline.variables, item)


def _to_go(value: Any) -> Any:
    """Texts become bytes, at any depth; keys stay as they are."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, dict):
        return type(value)((k, _to_go(v)) for k, v in value.items())
    return [_to_go(v) for v in value] if isinstance(value, list | tuple) else value


def _is_true(value: Any) -> bool:
    return value is not None and (isinstance(value, Struct) or bool(value))


def _eq(first: Any, *others: Any) -> bool:
    return any(_are_comparable(first, o) and first == o for o in others)


def _are_comparable(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    if type(a) is not type(b):
        raise TypeError("incompatible types for comparison")
    return True


def _slice(value: Any, *bounds: int) -> Any:
    begin, end = (*bounds, 0, len(value))[:2] if len(bounds) == 2 else ((bounds or (0,))[0], len(value))
    if not 0 <= begin <= end <= len(value):
        raise IndexError(f"index out of range: {begin}:{end}")
    return value[begin:end]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key.decode()) if isinstance(value, dict) else value[key]
    return value


_BUILTINS: dict[str, Callable[..., Any]] = {
    "not": lambda x: not _is_true(x),
    "len": lambda x: len(x),
    "slice": _slice,
    "index": _index,
    "printf": format_pattern,
    "print": lambda *xs: b"".join(map(show, xs)),
    "eq": _eq,
    "ne": lambda a, b: not _eq(a, b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
