"""The tools of a request, and their names in both directions.

Tools keep their API name wherever a Harmony header can carry it; any other character becomes ``_``, and a name that is
then taken gets ``_2``, ``_3``...
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.builtin_tools import builtin_namespace
from gptoss_harmony.errors import LayoutError
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


class ToolTable:
    """The tools of a request under Harmony-safe names: `functions`, the client's other namespaces in `spaces`, and
    `builtins` by namespace.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.functions: list[Tool] = []
        self.spaces: dict[str, ToolNamespace] = {}
        self.builtins: dict[str, ToolNamespace] = {}
        self._recipient_of: dict[tuple[str | None, str], str] = {}  # (namespace, name) of the API
        self._declared_of: dict[str, Declared] = {}  # by recipient
        for i, tool in enumerate(expect(tools or [], list, "tools")):
            self._add(expect(tool, dict, f"tools[{i}]"), f"tools[{i}]")
        for space, name in self._recipient_of:
            if space is None and name.partition(".")[0] in self.builtins:
                # The API has one name for both, so an answer could not say which of them is called.
                raise LayoutError(
                    "tools", f"the name of a built-in tool is taken by the function {name!r}: rename the function"
                )

    def _add(self, tool: Mapping[str, Any], where: str) -> None:
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

    def _declare(self, spec: Spec, where: str, tool: Mapping[str, Any]) -> None:
        declared = spec.declared
        key = (declared.namespace, declared.name)
        if key in self._recipient_of:
            raise LayoutError(f"{where}.name", f"two tools are called {declared.name!r}")
        space = _FUNCTIONS if declared.namespace is None else _clean_space(declared.namespace)
        base = recipient = f"{space}.{_clean(declared.name)}"
        n = 1
        while recipient in self._declared_of:
            n += 1
            recipient = f"{base}_{n}"
        self._recipient_of[key] = recipient
        self._declared_of[recipient] = declared
        shown = Tool(recipient.removeprefix(f"{space}."), spec.description, spec.parameters)
        if declared.namespace is None:
            self.functions.append(shown)
            return
        about = tool.get("description", tool.get("server_description"))
        about = about if isinstance(about, str) and about else None
        self.spaces.setdefault(space, ToolNamespace(space, about, [])).tools.append(shown)

    def recipient(self, name: str, namespace: str | None = None) -> str:
        """Header recipient of the tool that the API calls `name`; an undeclared name counts as a function."""
        found = self._recipient_of.get((namespace, name))
        if found is None and namespace is None:
            # Some clients lose the namespace on the way; a name that only one of them has is enough.
            alike = [recipient for (_, known), recipient in self._recipient_of.items() if known == name]
            found = alike[0] if len(alike) == 1 else None
        if found is not None:
            return found
        if namespace is not None:
            return f"{_clean_space(namespace)}.{_clean(name)}"
        return name if self.is_builtin(name) else f"{_FUNCTIONS}.{_clean(name)}"

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

    def call(self, name: str, arguments: str, namespace: str | None = None) -> Message:
        """The assistant message that calls the tool `name` (API name); the text of `arguments` goes in as it is."""
        recipient = self.recipient(name, namespace)
        if not _is_builtin_recipient(recipient):
            return Message.assistant(arguments, COMMENTARY, recipient, "<|constrain|>json")
        code = _unwrap_code(arguments) if recipient == "python" else arguments
        return Message.assistant(code, ANALYSIS, recipient, "code")

    def is_builtin(self, name: str) -> bool:
        """True for ``python`` and ``browser.*`` unless the request declares a function of that name."""
        return (None, name) not in self._recipient_of and _is_builtin_recipient(name)

    def namespaces(self, builtins: bool = True) -> dict[str, ToolNamespace]:
        """The tools by namespace, as `DeveloperContent` and `Parser` take them."""
        own = {_FUNCTIONS: ToolNamespace.functions(self.functions)} if self.functions else {}
        return own | self.spaces | (self.builtins if builtins else {})

    def only(self, names: Iterable[str]) -> ToolTable:
        """The same names in both directions, offering only the tools that the API calls `names` (or their types)."""
        wanted = set(names)
        part = ToolTable()
        part._recipient_of = self._recipient_of
        part._declared_of = self._declared_of

        def keep(space: str, tools: Iterable[Tool]) -> list[Tool]:
            return [tool for tool in tools if wanted & _list_names(self._declared_of[f"{space}.{tool.name}"])]

        part.functions = keep(_FUNCTIONS, self.functions)
        for name, space in self.spaces.items():
            if kept := keep(name, space.tools):
                part.spaces[name] = ToolNamespace(name, space.description, kept)
        part.builtins = {name: space for name, space in self.builtins.items() if name in wanted}
        return part

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
