"""The message classes of openai-harmony 0.0.8, over ours: what it calls by other names, and its fluent methods.

They are plain dataclasses, not pydantic models: the same fields, defaults and `to_dict`, none of pydantic's methods.
Unlike ours, `to_dict` leaves nulls out, and unknown keys are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from gptoss_harmony.builtin_tools import builtin_namespace
from gptoss_harmony.messages import ChannelConfig as OurChannelConfig
from gptoss_harmony.messages import DeveloperContent as OurDeveloperContent
from gptoss_harmony.messages import HeaderForm, ReasoningEffort, Role, Text, Tool, ToolNamespace
from gptoss_harmony.messages import Message as OurMessage
from gptoss_harmony.messages import SystemContent as OurSystemContent
from gptoss_harmony.tokens import CHANNELS

Json = dict[str, Any]
_M = TypeVar("_M")


@dataclass
class Author:
    role: Role
    name: str | None = None

    @classmethod
    def new(cls, role: Role, name: str) -> Author:
        return cls(role=role, name=name)


class Content:
    """What a message may contain."""

    def to_dict(self) -> Json:
        raise NotImplementedError


@dataclass
class TextContent(Text, Content):
    def to_dict(self) -> Json:
        return {"type": "text", "text": self.text}


@dataclass
class ToolDescription(Tool):
    description: str  # no default

    @classmethod
    def new(cls, name: str, description: str, parameters: Json | None = None) -> ToolDescription:
        return cls(name, description, parameters)


@dataclass
class ChannelConfig(OurChannelConfig):
    valid_channels: list[str]  # no default
    channel_required: bool

    @classmethod
    def require_channels(cls, channels: list[str]) -> ChannelConfig:
        return cls(valid_channels=channels, channel_required=True)


@dataclass
class ToolNamespaceConfig(ToolNamespace):
    tools: list[Tool] = field(kw_only=True)  # no default

    def __post_init__(self) -> None:
        self.tools = [_make(ToolDescription, tool) for tool in self.tools]

    @staticmethod
    def browser() -> ToolNamespaceConfig:
        return _make(ToolNamespaceConfig, builtin_namespace("browser").to_dict())

    @staticmethod
    def python() -> ToolNamespaceConfig:
        return _make(ToolNamespaceConfig, builtin_namespace("python").to_dict())


@dataclass
class SystemContent(OurSystemContent, Content):
    channel_config: OurChannelConfig | None = field(
        default_factory=lambda: ChannelConfig.require_channels(list(CHANNELS))
    )

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None:
            self.reasoning_effort = ReasoningEffort(self.reasoning_effort)
        self.channel_config = None if self.channel_config is None else _make(ChannelConfig, self.channel_config)
        self.tools = _make_namespaces(self.tools)

    @classmethod
    def new(cls) -> SystemContent:
        return cls()

    def with_model_identity(self, model_identity: str) -> SystemContent:
        self.model_identity = model_identity
        return self

    def with_reasoning_effort(self, reasoning_effort: ReasoningEffort) -> SystemContent:
        self.reasoning_effort = reasoning_effort
        return self

    def with_conversation_start_date(self, conversation_start_date: str) -> SystemContent:
        self.conversation_start_date = conversation_start_date
        return self

    def with_knowledge_cutoff(self, knowledge_cutoff: str) -> SystemContent:
        self.knowledge_cutoff = knowledge_cutoff
        return self

    def with_channel_config(self, channel_config: ChannelConfig) -> SystemContent:
        self.channel_config = channel_config
        return self

    def with_required_channels(self, channels: list[str]) -> SystemContent:
        self.channel_config = ChannelConfig.require_channels(channels)
        return self

    def with_tools(self, ns_config: ToolNamespaceConfig) -> SystemContent:
        self.tools = {**(self.tools or {}), ns_config.name: ns_config}
        return self

    def with_browser_tool(self) -> SystemContent:
        return self.with_tools(ToolNamespaceConfig.browser())

    def with_python_tool(self) -> SystemContent:
        return self.with_tools(ToolNamespaceConfig.python())

    def to_dict(self) -> Json:
        return {**_drop_nulls(self), "type": "system_content"}

    @classmethod
    def from_dict(cls, raw: Json) -> SystemContent:
        return _make(cls, raw)


@dataclass
class DeveloperContent(OurDeveloperContent, Content):
    def __post_init__(self) -> None:
        self.tools = _make_namespaces(self.tools)

    @classmethod
    def new(cls) -> DeveloperContent:
        return cls()

    def with_instructions(self, instructions: str) -> DeveloperContent:
        self.instructions = instructions
        return self

    def with_tools(self, ns_config: ToolNamespaceConfig) -> DeveloperContent:
        self.tools = {**(self.tools or {}), ns_config.name: ns_config}
        return self

    def with_function_tools(self, tools: Sequence[ToolDescription]) -> DeveloperContent:
        return self.with_tools(ToolNamespaceConfig("functions", tools=list(tools)))

    def to_dict(self) -> Json:
        return {**_drop_nulls(self), "type": "developer_content"}

    @classmethod
    def from_dict(cls, raw: Json) -> DeveloperContent:
        return _make(cls, raw)


@dataclass
class Message:
    """The renderer reads these objects as they are: `role` and `name` are the author's."""

    author: Author
    content: list[Content] = field(default_factory=list)
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None

    @property
    def role(self) -> Role:
        return self.author.role

    @property
    def name(self) -> str | None:
        return self.author.name

    @property
    def header(self) -> HeaderForm | None:
        return None

    @classmethod
    def from_author_and_content(cls, author: Author, content: str | Content) -> Message:
        return cls(author=author, content=[_make_content(content)])

    @classmethod
    def from_role_and_content(cls, role: Role, content: str | Content) -> Message:
        return cls.from_author_and_content(Author(role), content)

    @classmethod
    def from_role_and_contents(cls, role: Role, contents: Sequence[Content]) -> Message:
        return cls(author=Author(role), content=list(contents))

    def adding_content(self, content: str | Content) -> Message:
        self.content.append(_make_content(content))
        return self

    def with_channel(self, channel: str) -> Message:
        self.channel = channel
        return self

    def with_recipient(self, recipient: str) -> Message:
        self.recipient = recipient
        return self

    def with_content_type(self, content_type: str) -> Message:
        self.content_type = content_type
        return self

    def to_dict(self) -> Json:
        """`role`, `name` and `content` always, the others only if set."""
        out: Json = {"role": self.role, "name": self.name, "content": [part.to_dict() for part in self.content]}
        rest = {key: getattr(self, key) for key in ("channel", "recipient", "content_type")}
        return out | {key: value for key, value in rest.items() if value is not None}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Json) -> Message:
        content = data["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        author = Author(_read_role(data["role"]), data.get("name"))
        rest = (data.get(key) for key in ("channel", "recipient", "content_type"))
        return cls(author, [_make_part(part) for part in parts], *rest)


@dataclass
class Conversation:
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not all(isinstance(message, Message) for message in self.messages):
            raise ValueError("Input should be a valid dictionary or instance of Message")

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> Conversation:
        return cls(messages=list(messages))

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def to_dict(self) -> Json:
        return {"messages": [message.to_dict() for message in self.messages]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, payload: str) -> Conversation:
        return cls([Message.from_dict(message) for message in json.loads(payload)["messages"]])


def from_ours(message: OurMessage) -> Message:
    """A parsed message in this interface."""
    parts: list[Content] = [TextContent(part.text) for part in message.content if isinstance(part, Text)]
    return Message(Author(message.role, message.name), parts, message.channel, message.recipient, message.content_type)


_PARTS: dict[object, type[Content]] = {
    "text": TextContent,
    "system_content": SystemContent,
    "developer_content": DeveloperContent,
}


def _make_part(raw: Json) -> Content:
    if raw.get("type") not in _PARTS:
        raise ValueError(f"Unknown content variant: {raw}")
    return _make(_PARTS[raw["type"]], raw)


def _make_content(content: str | Content) -> Content:
    return TextContent(content) if isinstance(content, str) else content


def _read_role(word: str) -> Role:
    try:
        return Role(word)
    except ValueError:
        raise ValueError(f"Unknown role: {word!r}") from None


def _make(kind: type[_M], value: Any) -> _M:
    """`value` as `kind`, from an object or a dict whose unknown keys are ignored. ValueError if something is
    missing.
    """
    if not isinstance(value, Mapping):
        return value  # type: ignore[no-any-return]
    known = {one.name: value[one.name] for one in fields(kind) if one.name in value}  # type: ignore[arg-type]
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


def _make_namespaces(spaces: Mapping[str, Any] | None) -> dict[str, ToolNamespace] | None:
    return None if spaces is None else {key: _make(ToolNamespaceConfig, space) for key, space in spaces.items()}


def _drop_nulls(value: Any) -> Any:
    """Fields that are not None, nested; a JSON schema is left as it is."""
    if hasattr(value, "__dataclass_fields__"):
        found = {one.name: getattr(value, one.name) for one in fields(value)}
        return {
            key: item if key == "parameters" else _drop_nulls(item) for key, item in found.items() if item is not None
        }
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items()}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value
