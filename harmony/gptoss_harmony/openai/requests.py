"""What Chat Completions and Responses requests have in common: tools, effort, instructions, response formats.

Function tools keep their API name wherever a Harmony header can carry it; any other character becomes ``_``, and a
name that is then taken gets ``_2``, ``_3``... `ToolTable` maps both ways.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_harmony.builtin_tools import builtin_namespace
from gptoss_harmony.errors import LayoutError
from gptoss_harmony.grammars.grammar import Final
from gptoss_harmony.json_reading import expect, expect_or_none
from gptoss_harmony.messages import (
    Conversation,
    DeveloperContent,
    Json,
    Message,
    ReasoningEffort,
    SystemContent,
    Text,
    Tool,
    ToolNamespace,
)
from gptoss_harmony.parsing.tool_names import NOBODY
from gptoss_harmony.rendering.policies import drop_documented
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY

_EFFORTS = {
    "none": ReasoningEffort.LOW,
    "minimal": ReasoningEffort.LOW,
    "low": ReasoningEffort.LOW,
    "medium": ReasoningEffort.MEDIUM,
    "high": ReasoningEffort.HIGH,
    "xhigh": ReasoningEffort.HIGH,
    "max": ReasoningEffort.HIGH,
    "ultra": ReasoningEffort.HIGH,
}
"""gpt-oss knows three efforts. ``none`` also closes the analysis before it starts, see `skip_reasoning`."""

_BUILTIN_OF_TYPE = {"browser": "browser", "web_search": "browser", "python": "python", "code_interpreter": "python"}
"""API tool types that mean one of the namespaces gpt-oss was trained on."""

_THOUGHTS = frozenset({"reasoning", "reasoning_text", "thinking"})
"""Types of content parts that are a chain of thought, never an answer."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")


class ToolTable:
    """The tools of a request: `functions` under Harmony-safe names, `builtins` by namespace, names in both
    directions.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.functions: list[Tool] = []
        self.builtins: dict[str, ToolNamespace] = {}
        self._safe_of: dict[str, str] = {}
        self._api_of: dict[str, str] = {}
        for i, tool in enumerate(expect(tools or [], list, "tools")):
            self._add(expect(tool, dict, f"tools[{i}]"), f"tools[{i}]")
        clash = next((name for name in self._safe_of if name.partition(".")[0] in self.builtins), None)
        if clash is not None:  # the API has one name for both, so an answer could not say which of them is called
            raise LayoutError(
                "tools", f"the name of a built-in tool is taken by the function {clash!r}: rename the function"
            )

    def _add(self, tool: Mapping[str, Any], where: str) -> None:
        kind = tool.get("type", "function")
        if kind != "function":
            builtin = _find_builtin(str(kind))
            if builtin not in _BUILTIN_OF_TYPE.values():
                known = ", ".join(["function", *_BUILTIN_OF_TYPE])
                raise LayoutError(f"{where}.type", f"unknown tool type (expected one of {known} / got {kind!r})")
            self.builtins[builtin] = builtin_namespace(builtin)
            return
        # Chat Completions nests the function, Responses does not.
        spec = read_optional(tool, "function", dict, where) or tool
        name = expect(spec.get("name"), str, f"{where}.name")
        if name in self._safe_of:
            raise LayoutError(f"{where}.name", f"two tools are called {name!r}")
        description = read_optional(spec, "description", str, where) or ""
        self.functions.append(Tool(self._reserve(name), description, read_optional(spec, "parameters", dict, where)))

    def _reserve(self, name: str) -> str:
        base = _UNSAFE.sub("_", name) or "_"
        safe = base
        n = 1
        while safe in self._api_of:
            n += 1
            safe = f"{base}_{n}"
        self._safe_of[name] = safe
        self._api_of[safe] = name
        return safe

    def recipient(self, name: str) -> str:
        """Header recipient of the tool that the API calls `name`; an undeclared name counts as a function."""
        if name not in self._safe_of and self.is_builtin(name):
            return name
        return "functions." + (self._safe_of.get(name) or _UNSAFE.sub("_", name) or "_")

    def api_name(self, recipient: str | None) -> str | None:
        """API name of the tool that a message is addressed to, None if it is addressed to no tool."""
        if recipient in NOBODY:
            return None
        assert recipient is not None
        safe = recipient.removeprefix("functions.")
        return self._api_of.get(safe, safe)

    def call(self, name: str, arguments: str) -> Message:
        """The assistant message that calls the tool `name` (API name); the text of `arguments` goes in as it is."""
        recipient = self.recipient(name)
        if recipient.startswith("functions."):
            return Message.assistant(arguments, COMMENTARY, recipient, "<|constrain|>json")
        code = _unwrap_code(arguments) if recipient == "python" else arguments
        return Message.assistant(code, ANALYSIS, recipient, "code")

    def is_builtin(self, name: str) -> bool:
        """True for ``python`` and ``browser.*`` unless the request declares a function of that name."""
        return name not in self._safe_of and (name == "python" or name.startswith("browser."))

    def namespaces(self, builtins: bool = True) -> dict[str, ToolNamespace]:
        """The tools by namespace, as `DeveloperContent` and `Parser` take them."""
        own = {"functions": ToolNamespace.functions(self.functions)} if self.functions else {}
        return own | (self.builtins if builtins else {})

    def only(self, names: Iterable[str]) -> ToolTable:
        """The same names in both directions, offering only the tools that the API calls `names`."""
        wanted = set(names)
        part = ToolTable()
        part._safe_of = self._safe_of
        part._api_of = self._api_of
        part.functions = [tool for tool in self.functions if self._api_of[tool.name] in wanted]
        part.builtins = {name: space for name, space in self.builtins.items() if name in wanted}
        return part


def read_optional(data: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
    """`data[key]` or None, or a LayoutError if it is neither absent, null nor a `kind`."""
    value = data.get(key)
    path = f"{where}.{key}" if where else key
    return expect_or_none(value, kind, path)


def read_effort(value: str | None, where: str) -> ReasoningEffort:
    """gpt-oss' effort for an API effort; None means medium."""
    if value is None:
        return ReasoningEffort.MEDIUM
    if value not in _EFFORTS:
        raise LayoutError(where, f"unknown effort (expected one of {', '.join(_EFFORTS)} / got {value!r})")
    return _EFFORTS[value]


def skip_reasoning() -> Message:
    """An empty chain of thought: with it before the model's turn, the model goes straight to its answer."""
    return Message.assistant("", ANALYSIS)


def read_parts(content: Any, where: str) -> list[Text]:
    """Text of an API content: a string, a list of text-like parts, or None (no parts)."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)]
    return [_read_part(part, f"{where}[{i}]") for i, part in enumerate(expect(content, list, where))]


def split_thoughts(content: Any, where: str) -> tuple[str, Any]:
    """(reasoning, the rest) of an assistant message's content: some clients send reasoning as one of its parts."""
    if not isinstance(content, list):
        return "", content
    thoughts = []
    rest = []
    for i, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in _THOUGHTS:
            found = next((part[key] for key in ("text", "thinking", "reasoning") if part.get(key) is not None), "")
            thoughts.append(expect(found, str, f"{where}[{i}].text"))
        else:
            rest.append(part)
    return "\n".join(thoughts), rest


def _read_part(part: Any, where: str) -> Text:
    if isinstance(part, str):
        return Text(part)
    for key in ("text", "refusal"):
        if isinstance(expect(part, dict, where).get(key), str):
            return Text(part[key])
    raise LayoutError(where, f"gpt-oss reads text only (expected a text part / got type {part.get('type')!r})")


def _unwrap_code(arguments: str) -> str:
    """The code of ``{"code": ...}``; anything else is taken to be code."""
    try:
        code = json.loads(arguments)["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return arguments
    return code if isinstance(code, str) else arguments


def make_result(recipient: str, parts: Sequence[Text]) -> Message:
    """What the tool `recipient` gave back, on the channel of its call."""
    channel = COMMENTARY if recipient.startswith("functions.") else ANALYSIS
    return Message.tool(recipient, join_parts(parts), channel=channel)


def join_parts(parts: Sequence[Text]) -> str:
    return "".join(part.text for part in parts)


def read_response_format(spec: Mapping[str, Any] | None, where: str) -> tuple[Json | None, str | None]:
    """(JSON schema, prompt section) of a response format; (None, None) for plain text.

    `spec` is ``{"type": "text" | "json_object" | "json_schema", ...}``, with name, schema and description either
    beside the type (Responses) or under ``json_schema`` (Chat Completions). The section is the format document's.
    """
    kind = "text" if spec is None else spec.get("type")
    if kind == "text":
        return None, None
    assert spec is not None
    if kind == "json_object":
        schema = read_optional(spec, "schema", dict, where)  # llama.cpp's addition
        return _write_section("json_object", "Answer with one JSON object.", schema or {"type": "object"})
    if kind != "json_schema":
        raise LayoutError(f"{where}.type", f"unknown format (expected text, json_object or json_schema / got {kind!r})")
    body = read_optional(spec, "json_schema", dict, where) or spec
    where = where if body is spec else f"{where}.json_schema"
    name, description = (read_optional(body, key, str, where) for key in ("name", "description"))
    return _write_section(
        name or "response", description or "", expect(body.get("schema", {}), dict, f"{where}.schema")
    )


def _write_section(name: str, description: str, schema: Json) -> tuple[Json, str]:
    comment = "".join(f"// {line}\n" for line in description.splitlines())
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return schema, f"# Response Formats\n\n## {name}\n\n{comment}{text}"


def open_conversation(
    effort: ReasoningEffort, date: str | None, tools: ToolTable, texts: Sequence[str | None]
) -> list[Message]:
    """System message, and the developer message with the instructions `texts` and the functions if there are any."""
    system = SystemContent(reasoning_effort=effort, conversation_start_date=date, tools=tools.builtins or None)
    instructions = "\n\n".join(text for text in texts if text is not None)
    functions = tools.namespaces(builtins=False) or None
    messages = [Message.system(system)]
    if instructions or functions:
        messages.append(Message.developer(DeveloperContent(instructions or None, functions)))
    return messages


def drop_finished_reasoning(messages: Sequence[Message]) -> Conversation:
    """Drops what stands on the analysis channel before the last final answer, as the format document asks."""
    return Conversation([m for m, kept in zip(messages, drop_documented(messages), strict=True) if kept])


def choose_tools(table: ToolTable, choice: Any, where: str = "tool_choice") -> tuple[ToolTable, bool]:
    """(tools that the model may call, whether it must call one) under an API tool_choice, in either API's spelling."""
    if choice in (None, "auto"):
        return table, False
    if choice == "none":
        return table.only(()), False
    if choice == "required":
        return _check_callable(table, repr(choice), where), True
    if isinstance(choice, str):
        raise LayoutError(where, f"unknown choice (expected none, auto, required or an object / got {choice!r:.100})")
    names, must_call = _read_choices(expect(choice, dict, where), where)
    part = table.only(names)
    return _check_callable(part, repr(names), where) if must_call else part, must_call


def _read_choices(choice: Mapping[str, Any], where: str) -> tuple[list[str], bool]:
    """(API names of the tools chosen, whether one must be called) of a choice that is an object."""
    body = read_optional(choice, "allowed_tools", dict, where) or choice
    if choice.get("type") != "allowed_tools":
        return [_read_choice(choice, where)], True
    tools = read_optional(body, "tools", list, where) or ()
    return [_read_choice(expect(tool, dict, where), where) for tool in tools], body.get("mode") == "required"


def _check_callable(tools: ToolTable, shown: str, where: str) -> ToolTable:
    """`tools`, or a LayoutError if there are none."""
    if not (tools.functions or tools.builtins):
        raise LayoutError(where, f"no tool to call (expected one of the declared tools / got {shown})")
    return tools


def choose_final(schema: Json | None, must_call: bool) -> Final:
    """What the final answer may be: none beside a call that is demanded, JSON of the schema, or text."""
    if must_call:
        return None
    return "text" if schema is None else schema


def _read_choice(choice: Mapping[str, Any], where: str) -> str:
    kind = str(choice.get("type"))
    if kind == "function":
        return str(expect((read_optional(choice, "function", dict, where) or choice).get("name"), str, f"{where}.name"))
    return _find_builtin(kind)


def _find_builtin(kind: str) -> str:
    """The namespace that an API tool type means, or the type itself. Web search types may end in a date."""
    return _BUILTIN_OF_TYPE.get("web_search" if kind.startswith("web_search") else kind, kind)
