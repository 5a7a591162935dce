"""Which tools of a request the model is offered: those that a client runs.

What only OpenAI's servers run is left out with a note, and so is a search or an interpreter that nobody here runs
(`--builtin-tools` says that the caller does). One foreign tool never ends a session.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gptoss_harmony.grammars.inputs import InputGrammar, explain_input
from gptoss_harmony.openai.tool_table import ToolTable, find_builtin
from gptoss_harmony.openai.tool_types import TOOL_TYPES

from gptoss_adapters.backends.protocol import Info
from gptoss_adapters.serve.arguments import Note, Reading
from gptoss_adapters.serve.errors import Json
from gptoss_adapters.serve.settings import OWN_TOOLS

_HOSTED = (
    "file_search",
    "computer",
    "computer_use_preview",
    "image_generation",
    "programmatic_tool_calling",
)
_NAMED = ("function", "custom", "namespace")
"""Types of tools that a choice names, and does not only give the type of."""
_ADDING = ("tool_search_output", "additional_tools")
"""Types of items that bring tools."""


_PLACE = re.compile(r"tools\[(\d+)\]")


def select_tools(reading: Reading[Any], builtin: frozenset[str], info: Info) -> None:
    """Leaves out of a request the tools, and a choice of them, that cannot be offered; adds those that items bring.
    Notes what is not as asked of those that are offered by the engine that `info` describes.
    """
    raw = reading.raw
    given = raw.get("tools")
    if not isinstance(given, list | None):
        return
    given = given or []
    listed = {str(item.get("server_label")): item for item in _list_items(raw, "mcp_list_tools")}
    kept: list[Any] = []
    places: list[int] = []
    for i, tool in enumerate(given):
        words = _find_obstacle(tool, builtin, listed)
        if words is None:
            kept.append(_complete(tool, listed))
            places.append(i)
        else:
            reading.note(Note(f"tools[{i}].type", words))
    some_left_out = len(kept) < len(given)
    kept += _list_found(raw, kept)
    if kept != given:
        raw["tools"] = reading.body.tools = kept
    if some_left_out:
        _release_choice(reading, kept)
    reading.note(*_describe(ToolTable(reading.body.tools), places, info))


def _describe(table: ToolTable, places: list[int], info: Info) -> Iterator[Note]:
    """`places`: which tool of the request each of those kept was; further ones came from elsewhere."""

    def find(where: str) -> str:
        found = _PLACE.fullmatch(where)
        at = int(found[1]) if found else len(places)
        return f"tools[{places[at]}]" if at < len(places) else "tools"

    for where, words, offered in table.remarks:
        yield Note(find(where), words, said=offered)
    for recipient, grammar in table.inputs.items():
        if reason := _explain_input(grammar, info):
            words = f"the model is shown the grammar, and nothing holds it to that: {reason}"
            yield Note(f"{find(table.places[recipient])}.format", words)


def _explain_input(grammar: InputGrammar, info: Info) -> str | None:
    return explain_input(grammar) if info.capabilities.grammar else f"the engine {info.engine} takes no grammar"


def _find_obstacle(tool: Any, builtin: frozenset[str], listed: dict[str, Json]) -> str | None:
    """Why a tool cannot be offered; None if it can, or is wrong in a way that its reader describes."""
    kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
    if not isinstance(kind, str) or kind in OWN_TOOLS:
        return None
    name = find_builtin(kind)
    if name in OWN_TOOLS:
        return None if name in builtin else f"a {kind!r} tool is not offered: nothing here runs it (--builtin-tools)"
    if kind == "mcp" and not tool.get("tools") and str(tool.get("server_label")) not in listed:
        return "an 'mcp' tool is not offered: this server calls no MCP server, and its tools are not listed"
    if kind == "tool_search" and tool.get("execution") == "server":
        return "a 'tool_search' tool is not offered: only OpenAI's servers run it"
    if kind in TOOL_TYPES:
        return None
    return f"a {kind!r} tool is not offered: only OpenAI's servers run it" if kind in _HOSTED else "unknown tool type"


def _complete(tool: Any, listed: dict[str, Json]) -> Any:
    """An MCP server with the tools that a list in the input says it has."""
    if isinstance(tool, dict) and tool.get("type") == "mcp" and not tool.get("tools"):
        return tool | {"tools": listed[str(tool["server_label"])].get("tools")}
    return tool


def _list_found(raw: Json, kept: list[Any]) -> Iterator[Any]:
    """The tools that a search of the client's has found, or that it has added on the way."""
    known = {_name_tool(tool) for tool in kept}
    for item in _list_items(raw, *_ADDING):
        for tool in item["tools"] if isinstance(item.get("tools"), list) else ():
            name = _name_tool(tool)
            if name[0] in TOOL_TYPES and name not in known:
                known.add(name)
                yield tool


def _name_tool(tool: Any) -> tuple[str, str]:
    if not isinstance(tool, dict):
        return "", ""
    return str(tool.get("type", "function")), str(tool.get("name"))


def _list_items(raw: Json, *kinds: str) -> Iterator[Json]:
    items = raw.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("type") in kinds:
            yield item


def _release_choice(reading: Reading[Any], kept: list[Any]) -> None:
    """A demand for what is left out is none, and of what is allowed the rest stays."""
    choice = reading.raw.get("tool_choice")
    kinds = {str(tool.get("type")) for tool in kept if isinstance(tool, dict)}
    if choice == "required":
        if kept:
            return
        words, choice = "no tool is left that could be called", "auto"
    elif not isinstance(choice, dict):
        return
    elif choice.get("type") == "allowed_tools":
        if any(_is_offered(entry, kinds) for entry in _list_allowed(choice)):
            return
        words, choice = "none of the tools allowed is offered, so none can be called", "none"
    elif _is_offered(choice, kinds):
        return
    else:
        words, choice = f"a {choice['type']!r} tool is not offered, so none has to be called", "auto"
    reading.note(Note("tool_choice", words))
    reading.raw["tool_choice"] = reading.body.tool_choice = choice


def _is_offered(choice: Any, kinds: set[str]) -> bool:
    """Is this choice of a tool by its type or name worth reading? What is wrong with it, its reader says."""
    kind = choice.get("type") if isinstance(choice, dict) else None
    return not isinstance(kind, str) or kind in _NAMED or kind in kinds


def _list_allowed(choice: Json) -> list[Any]:
    inner = choice.get("allowed_tools")
    tools = (inner if isinstance(inner, dict) else choice).get("tools")
    return tools if isinstance(tools, list) else []
