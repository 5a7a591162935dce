"""The tools of a request, and their names in both directions.

Tools keep their API name wherever a Harmony header can carry it; any other character becomes ``_``, and a name that is
then taken gets ``_2``, ``_3``... So a function, a custom tool and a shell may share one name: they come back as what
they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gptoss_harmony.builtin_tools import builtin_namespace
from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.inputs import InputGrammar
from gptoss_harmony.json_reading import expect
from gptoss_harmony.messages import Message, Role, Tool, ToolNamespace
from gptoss_harmony.openai.tool_types import TOOL_TYPES, Declared, Spec, read_tool
from gptoss_harmony.parsing.tool_names import NOBODY
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY

_BUILTIN_OF_TYPE = {
    "browser": "browser",
    "web_search": "browser",
    "browser_search": "browser",
    "python": "python",
    "code_interpreter": "python",
}
"""API tool types that mean one of the namespaces gpt-oss was trained on."""

_FUNCTIONS = "functions"
_TAKEN = frozenset({_FUNCTIONS, *_BUILTIN_OF_TYPE.values(), *(role.value for role in Role), "all", "container"})
"""Names that no namespace of a client may have."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")


class Remark(NamedTuple):
    """What a table did with a tool that its request would not expect. `kept`: it is offered all the same."""

    where: str
    text: str
    kept: bool


class Choice(NamedTuple):
    """A tool as a request chooses it: its API name or type, and `kind` where that is said too."""

    name: str
    kind: str | None = None


class ToolTable:
    """The tools of a request under Harmony-safe names: `functions`, the client's other namespaces in `spaces`, and
    `builtins` by namespace. `inputs`: grammars of custom tools' inputs, by recipient; `places`: where in the request
    each tool stands. `remarks`: tools that share a name, and what became of them.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.functions: list[Tool] = []
        self.spaces: dict[str, ToolNamespace] = {}
        self.builtins: dict[str, ToolNamespace] = {}
        self.inputs: dict[str, InputGrammar] = {}
        self.places: dict[str, str] = {}
        self.remarks: list[Remark] = []
        self._recipient_of: dict[Declared, str] = {}
        self._declared_of: dict[str, Declared] = {}  # by recipient
        self._space_of: dict[str, str] = {}  # by the API's name of a namespace
        self._shown: dict[str, Spec] = {}  # by recipient
        builtin_at: dict[str, str] = {}
        for i, tool in enumerate(expect(tools or [], list, "tools")):
            self._add(expect(tool, dict, f"tools[{i}]"), f"tools[{i}]", builtin_at)
        self._drop_hidden_builtins(builtin_at)

    def _add(self, tool: Mapping[str, Any], where: str, builtin_at: dict[str, str]) -> None:
        kind = tool.get("type", "function")
        if kind in TOOL_TYPES:
            for spec in read_tool(tool, where):
                self._declare(spec, where, tool)
            return
        builtin = find_builtin(str(kind))
        if builtin not in _BUILTIN_OF_TYPE.values():
            known = ", ".join([*TOOL_TYPES, *_BUILTIN_OF_TYPE])
            raise LayoutError(f"{where}.type", f"unknown tool type (expected one of {known} / got {kind!r})")
        self.builtins[builtin] = builtin_namespace(builtin)
        builtin_at.setdefault(builtin, where)

    def _declare(self, spec: Spec, where: str, tool: Mapping[str, Any]) -> None:
        declared = spec.declared
        if known := self._recipient_of.get(declared):
            if spec != self._shown[known]:
                words = f"two {declared.kind} tools are called {declared.name!r}: the first is offered"
                self.remarks.append(Remark(where, words, kept=False))
            return
        space = _FUNCTIONS if declared.namespace is None else self._open_space(declared.namespace)
        wanted = f"{space}.{_clean(declared.name)}"
        recipient = _number(wanted, self._declared_of)
        if recipient != wanted and any(declared.name == other.name for other in self._list_in(space)):
            shown = recipient.removeprefix(f"{space}.")
            words = f"another tool is called {declared.name!r}: gpt-oss is shown this one as {shown!r}"
            self.remarks.append(Remark(where, words, kept=True))
        self._recipient_of[declared] = recipient
        self._declared_of[recipient] = declared
        self._shown[recipient] = spec
        self.places[recipient] = where
        if spec.grammar:
            self.inputs[recipient] = spec.grammar
        tool_shown = Tool(recipient.removeprefix(f"{space}."), spec.description, spec.parameters)
        if declared.namespace is None:
            self.functions.append(tool_shown)
            return
        about = tool.get("description", tool.get("server_description"))
        about = about if isinstance(about, str) and about else None
        self.spaces.setdefault(space, ToolNamespace(space, about, [])).tools.append(tool_shown)

    def _open_space(self, namespace: str) -> str:
        """The Harmony namespace of one of the API's: two of those are never one."""
        if namespace not in self._space_of:
            self._space_of[namespace] = _number(_clean_space(namespace), set(self._space_of.values()))
        return self._space_of[namespace]

    def _list_in(self, space: str) -> Iterator[Declared]:
        return (known for recipient, known in self._declared_of.items() if recipient.startswith(f"{space}."))

    def _drop_hidden_builtins(self, builtin_at: Mapping[str, str]) -> None:
        """Both would come back under one name, so that an answer could not say which of them is called."""
        for name, space in list(self.builtins.items()):
            own = {f"{name}.{tool.name}" for tool in space.tools} or {name}
            taken = next((tool.name for tool in self._declared_of.values() if _is_among(tool, own)), None)
            if taken is not None:
                del self.builtins[name]
                words = f"the built-in {name!r} is not offered: a tool of the request is called {taken!r}"
                self.remarks.append(Remark(builtin_at[name], words, kept=False))

    def recipient(self, name: str, namespace: str | None = None, kind: str = "function") -> str:
        """Header recipient of the tool that the API calls `name`; an undeclared name counts as a function."""
        found = self._find_recipient(name, namespace, kind)
        if found is not None:
            return found
        if namespace is not None:
            return f"{self._space_of.get(namespace) or _clean_space(namespace)}.{_clean(name)}"
        return name if self.is_builtin(name) else f"{_FUNCTIONS}.{_clean(name)}"

    def _find_recipient(self, name: str, namespace: str | None, kind: str) -> str | None:
        exact = self._recipient_of.get(Declared(name, namespace, kind))
        if exact is not None:
            return exact
        alike = {known: to for known, to in self._recipient_of.items() if known.name == name}
        near = [to for known, to in alike.items() if known.namespace == namespace]
        if near:
            return near[0]
        # Some clients lose the namespace on the way; a name that only one of them has is enough.
        return next(iter(alike.values())) if namespace is None and len(alike) == 1 else None

    def find(self, recipient: str | None) -> Declared | None:
        """The declared tool that a message is addressed to."""
        return self._declared_of.get(recipient or "") or self._declared_of.get(f"{_FUNCTIONS}.{recipient}")

    def find_kind(self, kind: str) -> Declared:
        """The tool of a type of which there is one; declared or not."""
        return next((tool for tool in self._declared_of.values() if tool.kind == kind), Declared(kind, kind=kind))

    def api_name(self, recipient: str | None) -> str | None:
        """API name of the tool that a message is addressed to, None if it is addressed to no tool."""
        if recipient in NOBODY:
            return None
        assert recipient is not None
        declared = self.find(recipient)
        return declared.name if declared else recipient.removeprefix(f"{_FUNCTIONS}.")

    def call(self, name: str, arguments: str, namespace: str | None = None, kind: str = "function") -> Message:
        """The assistant message that calls the tool `name` (API name); the text of `arguments` goes in as it is."""
        recipient = self.recipient(name, namespace, kind)
        if not _is_builtin_recipient(recipient):
            return Message.assistant(arguments, COMMENTARY, recipient, "<|constrain|>json")
        code = _unwrap_code(arguments) if recipient == "python" else arguments
        return Message.assistant(code, ANALYSIS, recipient, "code")

    def is_builtin(self, name: str) -> bool:
        """True for ``python`` and ``browser.*`` unless the request declares a function of that name."""
        declared = any(tool.name == name and tool.namespace is None for tool in self._recipient_of)
        return not declared and _is_builtin_recipient(name)

    def namespaces(self, builtins: bool = True) -> dict[str, ToolNamespace]:
        """The tools by namespace, as `DeveloperContent` and `Parser` take them."""
        own = {_FUNCTIONS: ToolNamespace.functions(self.functions)} if self.functions else {}
        return own | self.spaces | (self.builtins if builtins else {})

    def only(self, choices: Iterable[Choice]) -> ToolTable:
        """The same names in both directions, offering only the tools chosen."""
        choices = [*choices]
        part = ToolTable()
        part._recipient_of = self._recipient_of
        part._declared_of = self._declared_of
        part._space_of = self._space_of
        chosen = {recipient for choice in choices for recipient in self._list_chosen(choice)}

        def keep(space: str, tools: Iterable[Tool]) -> list[Tool]:
            return [tool for tool in tools if f"{space}.{tool.name}" in chosen]

        part.inputs = {recipient: grammar for recipient, grammar in self.inputs.items() if recipient in chosen}
        part.functions = keep(_FUNCTIONS, self.functions)
        for name, space in self.spaces.items():
            if kept := keep(name, space.tools):
                part.spaces[name] = ToolNamespace(name, space.description, kept)
        wanted = {choice.name for choice in choices}
        part.builtins = {name: space for name, space in self.builtins.items() if name in wanted}
        return part

    def _list_chosen(self, choice: Choice) -> list[str]:
        named = {to: tool for to, tool in self._declared_of.items() if choice.name in _list_names(tool)}
        exact = [to for to, tool in named.items() if tool.kind == choice.kind]
        return exact or [*named]

    def __bool__(self) -> bool:
        return bool(self.functions or self.spaces or self.builtins)


def find_builtin(kind: str) -> str:
    """The namespace that an API tool type means, or the type itself. Web search types may end in a date."""
    return _BUILTIN_OF_TYPE.get("web_search" if kind.startswith("web_search") else kind, kind)


def _list_names(tool: Declared) -> set[str | None]:
    names = {tool.name, tool.namespace}
    return names if tool.kind in ("function", "custom", "mcp") else {*names, tool.kind}


def _is_builtin_recipient(recipient: str) -> bool:
    return recipient == "python" or recipient.startswith("browser.")


def _is_among(tool: Declared, names: set[str]) -> bool:
    return tool.namespace is None and tool.name in names


def _number(name: str, taken: Container[str]) -> str:
    """`name`, or with the first number that makes it free."""
    free = name
    n = 1
    while free in taken:
        n += 1
        free = f"{name}_{n}"
    return free


def _clean(name: str) -> str:
    return _UNSAFE.sub("_", name) or "_"


def _clean_space(name: str) -> str:
    clean = _clean(name).replace(".", "_")
    return f"ns_{clean}" if clean in _TAKEN else clean


def _unwrap_code(arguments: str) -> str:
    """The code of ``{"code": ...}``; anything else is taken to be code."""
    try:
        code = json.loads(arguments)["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return arguments
    return code if isinstance(code, str) else arguments
