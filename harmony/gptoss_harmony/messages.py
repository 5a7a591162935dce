"""Conversation, Message and their parts: plain typed classes, JSON in and out in openai-harmony's layout.

A missing key and a null differ. `to_dict` writes every key of system and developer content, null meaning "no such
section"; `from_dict` gives a missing system_content key its published default and keeps null as None. Message keys
that are null may be left out. What openai-harmony does not know (`header`, `end`, `flags`) is written only when set;
it ignores such keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from gptoss_harmony.errors import LayoutError
from gptoss_harmony.json_reading import expect, expect_member, expect_or_none, read_json
from gptoss_harmony.tokens import CHANNELS

Json: TypeAlias = dict[str, Any]


class Role(StrEnum):
    """Who speaks. Compares and hashes like its plain string, so ``message.role == "user"`` works."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    DEVELOPER = "developer"
    TOOL = "tool"

    __hash__ = str.__hash__


class ReasoningEffort(StrEnum):
    """Written ``Low``, ``Medium``, ``High`` in JSON and in lower case in the prompt."""

    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"


@dataclass(slots=True)
class Text:
    """Ordinary text; text that looks like a special token stays text."""

    text: str


@dataclass(slots=True)
class Tool:
    """One function: `parameters` is a JSON schema, None for a function without arguments."""

    name: str
    description: str = ""
    parameters: Json | None = None


@dataclass(slots=True)
class ToolNamespace:
    """A named group of tools; user-defined functions live in the namespace ``functions``."""

    name: str
    description: str | None = None
    tools: list[Tool] = field(default_factory=list)

    @classmethod
    def functions(cls, tools: Iterable[Tool]) -> ToolNamespace:
        return cls("functions", None, list(tools))

    def to_dict(self) -> Json:
        tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in self.tools]
        return {"name": self.name, "description": self.description, "tools": tools}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "namespace") -> ToolNamespace:
        data = expect(data, dict, where)
        entries = expect(data.get("tools"), list, f"{where}.tools")
        tools = [_tool_from_dict(entry, f"{where}.tools[{i}]") for i, entry in enumerate(entries)]
        name = expect(data.get("name"), str, f"{where}.name")
        return cls(name, expect_or_none(data.get("description"), str, f"{where}.description"), tools)


@dataclass(slots=True)
class ChannelConfig:
    """The channels that the system message declares."""

    valid_channels: list[str] = field(default_factory=lambda: list(CHANNELS))
    channel_required: bool = True


@dataclass(slots=True)
class SystemContent:
    """The system message, with the published defaults; None leaves a section out. `tools` is keyed by namespace."""

    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    reasoning_effort: ReasoningEffort | None = ReasoningEffort.MEDIUM
    conversation_start_date: str | None = None
    knowledge_cutoff: str | None = "2024-06"
    channel_config: ChannelConfig | None = field(default_factory=ChannelConfig)
    tools: dict[str, ToolNamespace] | None = None


@dataclass(slots=True)
class DeveloperContent:
    """Instructions and tools of the application. `tools` is keyed by namespace."""

    instructions: str | None = None
    tools: dict[str, ToolNamespace] | None = None


Part: TypeAlias = Text | SystemContent | DeveloperContent


@dataclass(slots=True, frozen=True)
class HeaderForm:
    """The exact ids that a model produced for one message, so that they can be given back unchanged.

    `tokens`: the header, the ids after ``<|start|>`` and before ``<|message|>`` (with the role's ids, even if those
    were prefilled).
    `content`: the ids after ``<|message|>`` and before the closing id; None means "the text, encoded".
    """

    tokens: tuple[int, ...]
    content: tuple[int, ...] | None = None


@dataclass(slots=True)
class Message:
    """One message. `name` is the tool's name for role tool.

    The last three describe model output and do not change what `render` makes by default: `header` the exact ids,
    `end` the id that closed the message (None: the stream ended first), `flags` the repairs that the parser made.
    """

    role: Role
    content: list[Part]
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    header: HeaderForm | None = None
    end: int | None = None
    flags: tuple[str, ...] = ()

    @classmethod
    def user(cls, text: str, name: str | None = None) -> Message:
        return cls(Role.USER, [Text(text)], name)

    @classmethod
    def assistant(
        cls, text: str, channel: str | None = None, recipient: str | None = None, content_type: str | None = None
    ) -> Message:
        return cls(Role.ASSISTANT, [Text(text)], None, channel, recipient, content_type)

    @classmethod
    def tool(
        cls, name: str, text: str, recipient: str | None = "assistant", channel: str | None = "commentary"
    ) -> Message:
        """The result of a call of `name` (with its namespace, e.g. ``functions.f``)."""
        return cls(Role.TOOL, [Text(text)], name, channel, recipient)

    @classmethod
    def system(cls, content: SystemContent | str | None = None) -> Message:
        part = SystemContent() if content is None else content
        return cls(Role.SYSTEM, [Text(part) if isinstance(part, str) else part])

    @classmethod
    def developer(cls, content: DeveloperContent | str) -> Message:
        """`content` as a string is the text of the instructions section."""
        return cls(Role.DEVELOPER, [DeveloperContent(content) if isinstance(content, str) else content])

    @property
    def text(self) -> str:
        """All text parts, concatenated."""
        return "".join([part.text for part in self.content if isinstance(part, Text)])

    def to_dict(self) -> Json:
        out: Json = {key: getattr(self, key) for key in ("role", "name", "channel", "recipient", "content_type")}
        out["role"] = Role(self.role).value
        out["content"] = [_part_to_dict(part) for part in self.content]
        if self.header is not None:
            content = self.header.content
            out["header"] = {"tokens": list(self.header.tokens), "content": None if content is None else list(content)}
        if self.end is not None:
            out["end"] = self.end
        if self.flags:
            out["flags"] = list(self.flags)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "message") -> Message:
        """Reads one message; raises LayoutError with the path of the first bad value."""
        data = expect(data, dict, where)
        if "content" not in data:
            raise LayoutError(where, "no content (expected a string or a list of parts)")
        content = data["content"]
        parts = (
            [{"type": "text", "text": content}]
            if isinstance(content, str)
            else expect(content, list, f"{where}.content")
        )
        return cls(
            role=expect_member(data.get("role"), Role, f"{where}.role"),
            content=[_part_from_dict(part, f"{where}.content[{i}]") for i, part in enumerate(parts)],
            header=_header_from_dict(data.get("header"), f"{where}.header"),
            end=expect_or_none(data.get("end"), int, f"{where}.end"),
            flags=tuple(expect_or_none(data.get("flags"), list, f"{where}.flags") or ()),
            **{
                key: expect_or_none(data.get(key), str, f"{where}.{key}")
                for key in ("name", "channel", "recipient", "content_type")
            },
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Message:
        return read_json(text, cls.from_dict)


@dataclass(slots=True)
class Conversation:
    """Messages in order."""

    messages: list[Message] = field(default_factory=list)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def to_dict(self) -> Json:
        return {"messages": [message.to_dict() for message in self.messages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conversation:
        """Reads ``{"messages": [...]}``; raises LayoutError with the path of the first bad value."""
        data = expect(data, dict, "conversation")
        messages = expect(data.get("messages"), list, "messages")
        return cls([Message.from_dict(message, f"messages[{i}]") for i, message in enumerate(messages)])

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Conversation:
        return read_json(text, cls.from_dict)


def _part_to_dict(part: Part) -> Json:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    tools = None if part.tools is None else {key: space.to_dict() for key, space in part.tools.items()}
    if isinstance(part, DeveloperContent):
        return {"type": "developer_content", "instructions": part.instructions, "tools": tools}
    effort = part.reasoning_effort
    channels = part.channel_config
    return {
        "type": "system_content",
        "model_identity": part.model_identity,
        "reasoning_effort": None if effort is None else effort.value,
        "conversation_start_date": part.conversation_start_date,
        "knowledge_cutoff": part.knowledge_cutoff,
        "channel_config": channels
        and {"valid_channels": list(channels.valid_channels), "channel_required": channels.channel_required},
        "tools": tools,
    }


def _part_from_dict(data: Any, where: str) -> Part:
    data = expect(data, dict, where)
    kind = data.get("type")
    if kind == "text":
        return Text(expect(data.get("text"), str, f"{where}.text"))
    if kind == "developer_content":
        instructions = expect_or_none(data.get("instructions"), str, f"{where}.instructions")
        return DeveloperContent(instructions, _tools_from_dict(data.get("tools"), f"{where}.tools"))
    if kind == "system_content":
        return _system_from_dict(data, where)
    raise LayoutError(where, f"unknown part type (expected text, system_content or developer_content / got {kind!r})")


def _system_from_dict(data: Json, where: str) -> SystemContent:
    part = SystemContent()
    for key in ("model_identity", "conversation_start_date", "knowledge_cutoff"):
        if key in data:
            setattr(part, key, expect_or_none(data[key], str, f"{where}.{key}"))
    if "reasoning_effort" in data:
        effort = data["reasoning_effort"]
        part.reasoning_effort = (
            None if effort is None else expect_member(effort, ReasoningEffort, f"{where}.reasoning_effort")
        )
    if "channel_config" in data:
        part.channel_config = _channels_from_dict(data["channel_config"], f"{where}.channel_config")
    part.tools = _tools_from_dict(data.get("tools"), f"{where}.tools")
    return part


def _channels_from_dict(data: Any, where: str) -> ChannelConfig | None:
    if data is None:
        return None
    data = expect(data, dict, where)
    names = expect(data.get("valid_channels"), list, f"{where}.valid_channels")
    valid = [expect(name, str, f"{where}.valid_channels[{i}]") for i, name in enumerate(names)]
    return ChannelConfig(valid, expect(data.get("channel_required"), bool, f"{where}.channel_required"))


def _tools_from_dict(data: Any, where: str) -> dict[str, ToolNamespace] | None:
    if data is None:
        return None
    return {key: ToolNamespace.from_dict(space, f"{where}.{key}") for key, space in expect(data, dict, where).items()}


def _tool_from_dict(data: Any, where: str) -> Tool:
    data = expect(data, dict, where)
    name, description = (expect(data.get(key), str, f"{where}.{key}") for key in ("name", "description"))
    return Tool(name, description, expect_or_none(data.get("parameters"), dict, f"{where}.parameters"))


def _header_from_dict(data: Any, where: str) -> HeaderForm | None:
    if data is None:
        return None
    data = expect(data, dict, where)
    content = expect_or_none(data.get("content"), list, f"{where}.content")
    return HeaderForm(
        tuple(expect(data.get("tokens"), list, f"{where}.tokens")), None if content is None else tuple(content)
    )
