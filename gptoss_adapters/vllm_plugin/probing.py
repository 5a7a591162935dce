"""Whether a vLLM has a name that a hook needs, and takes the arguments that we give, or gives those that we take.

Where the module is loaded the live object is asked. Where it is not, its source is read: importing vLLM's layers costs
seconds and may touch a GPU, in processes that will never use them. Reading needs nothing but files, so a release that
cannot run on this machine is judged by the same table (`scripts/vllm_matrix.py`).
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DEPTH = 20  # re-exports and bases that are followed before giving up


@dataclass(frozen=True)
class Need:
    """`where`: "module:name.member", or several of them of which one will do, newest first. `takes`: arguments that it
    must have beside which it may demand no other. `replaced`: our own stands in its place, so it may have no others
    at all.
    """

    where: str | tuple[str, ...]
    takes: tuple[str, ...] | None = None
    replaced: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        return (self.where,) if isinstance(self.where, str) else self.where


@dataclass(frozen=True)
class _Arguments:
    required: frozenset[str]
    named: frozenset[str]
    open: bool  # takes **kwargs: any name will do

    def compare(self, need: Need) -> str:
        """What does not fit, or ""."""
        takes = set(need.takes or ())
        if not self.open and (missing := sorted(takes - self.named)):
            return f"does not take {', '.join(missing)}"
        if more := sorted((self.named if need.replaced else self.required) - takes):
            return f"takes {', '.join(more)} as well"
        return ""


def find_obstacle(needs: tuple[Need, ...], sources: Sources) -> str:
    """The first need that is not met, in words, or ""."""
    for need in needs:
        found = [_judge(place, need, sources) for place in need.places]
        if all(found):
            return found[0]
    return ""


def _judge(place: str, need: Need, sources: Sources) -> str:
    module, _, path = place.partition(":")
    label = f"{module}.{path}"
    try:
        live = sources.is_live and module in sys.modules
        found = _look_live(module, path) if live else sources.look(module, path)
        if found is None:
            return f"there is no {label}"
        if need.takes is None:
            return ""
        arguments = _read_signature(found) if live else sources.read_arguments(found)
    except Exception as error:  # whatever vLLM has become
        return f"{label} could not be read: {type(error).__name__}: {error}"
    problem = arguments.compare(need)
    return f"{label} {problem}" if problem else ""


# Live objects ---------------------------------------------------------------------------------------------------------


def _look_live(module: str, path: str) -> Any:
    """The object, or None. A field of a class that has no default is no attribute, but a need like any other."""
    found: Any = sys.modules[module]
    for name in path.split("."):
        if hasattr(found, name):
            found = getattr(found, name)
        else:
            return True if name in getattr(found, "__annotations__", {}) else None
    return True if found is None else found


def _read_signature(found: Any) -> _Arguments:
    parameters = list(inspect.signature(found).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ("self", "cls")]
    return _Arguments(
        frozenset(p.name for p in named if p.default is p.empty),
        frozenset(p.name for p in named),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


# Sources --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A definition and the module that it stands in, whose names it uses."""

    node: ast.AST
    module: str


class Sources:
    """The Python files of the vLLM in `folder` (the package's own folder); of the one that is installed, if None. Then
    modules that are loaded are not read but asked.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.is_live = folder is None
        self._given = folder
        self._trees: dict[str, ast.Module | None] = {}

    @cached_property
    def folder(self) -> Path:
        if self._given is not None:
            return self._given
        spec = find_spec("vllm")
        if spec is None or spec.origin is None:
            raise ImportError("vLLM is not installed")
        return Path(spec.origin).parent

    def look(self, module: str, path: str, depth: int = _DEPTH) -> _Found | None:
        """The definition behind a dotted name, through re-exports, instances of classes, and bases."""
        name, _, rest = path.partition(".")
        found = self._look_name(module, name, depth)
        for member in rest.split(".") if rest else ():
            found = None if found is None else self._look_member(found, member, depth)
        return found

    def read_arguments(self, found: _Found) -> _Arguments:
        node = found.node
        if isinstance(node, ast.ClassDef):
            made = self._look_member(found, "__init__", _DEPTH)
            return self._read_fields(node) if made is None else self.read_arguments(made)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            raise TypeError("it is not a function")
        given = node.args
        positional = [a.arg for a in (*given.posonlyargs, *given.args)]
        bare = positional[: len(positional) - len(given.defaults)]
        bare += [a.arg for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
        named = {*positional, *(a.arg for a in given.kwonlyargs)} - {"self", "cls"}
        return _Arguments(frozenset(bare) & named, frozenset(named), given.kwarg is not None)

    @staticmethod
    def _read_fields(node: ast.ClassDef) -> _Arguments:
        """The arguments of a dataclass or a named tuple."""
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        names = {n.target.id: n.value is None for n in fields if isinstance(n.target, ast.Name)}
        return _Arguments(frozenset(n for n, bare in names.items() if bare), frozenset(names), False)

    def _read(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            stem = self.folder.joinpath(*module.split(".")[1:])
            files = [file for file in (stem / "__init__.py", stem.with_suffix(".py")) if file.is_file()]
            tree = ast.parse(files[0].read_text("utf-8")) if module.split(".")[0] == "vllm" and files else None
            self._trees[module] = tree
        return self._trees[module]

    def _look_name(self, module: str, name: str, depth: int) -> _Found | None:
        tree = self._read(module)
        if tree is None or depth == 0:
            return None
        for node in _walk_top(tree.body):
            if isinstance(node, _DEFINITIONS) and node.name == name:
                return _Found(node, module)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) in (name, "*"):
                        found = self._look_name(self._resolve(module, node), _original(alias, name), depth - 1)
                        if found is not None:
                            return found
            if name in _list_targets(node):
                return _Found(node, module)
        return None

    def _resolve(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.folder.joinpath(*module.split(".")[1:], "__init__.py").is_file()
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _look_member(self, found: _Found, name: str, depth: int) -> _Found | None:
        node = found.node
        if depth == 0:
            return None
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):  # an instance
            made = node.value.func
            of = self._look_name(found.module, made.id, depth - 1) if isinstance(made, ast.Name) else None
            return None if of is None else self._look_member(of, name, depth - 1)
        if not isinstance(node, ast.ClassDef):
            return None
        for inner in _walk_top(node.body):
            if (isinstance(inner, _DEFINITIONS) and inner.name == name) or name in _list_targets(inner):
                return _Found(inner, found.module)
        for base in node.bases:
            of = self._look_name(found.module, base.id, depth - 1) if isinstance(base, ast.Name) else None
            inherited = None if of is None else self._look_member(of, name, depth - 1)
            if inherited is not None:
                return inherited
        return None


def _original(alias: ast.alias, name: str) -> str:
    return name if alias.name == "*" else alias.name


def _list_targets(node: ast.AST) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _walk_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, those under `if` and `try` too."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _walk_top([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _walk_top([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])
        else:
            yield node
