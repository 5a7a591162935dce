"""What the parser says while it reads: a message starts, text arrives, the message ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gptoss_harmony.messages import Message, Role


@dataclass(slots=True)
class Header:
    """Who speaks, where to and in which form; the fields of `Message` without its content."""

    role: Role
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


@dataclass(slots=True)
class MessageStart:
    """A header is complete. `flags`: the repairs made so far."""

    header: Header
    flags: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Delta:
    """Text of the open message. One `feed` gives at most one Delta between two other events, never an empty one.

    Frozen because parsers share them: a token always gives the same one.
    """

    text: str


@dataclass(slots=True)
class MessageEnd:
    """The open message is closed. `reason`: a key of `END_REASONS`; `message.flags` has all repairs."""

    reason: str
    message: Message

    @property
    def flags(self) -> tuple[str, ...]:
        return self.message.flags


Event: TypeAlias = MessageStart | Delta | MessageEnd

END_REASONS = {
    "end": "<|end|>: more messages follow",
    "call": "<|call|>: the model waits for a tool",
    "return": "<|return|>: the model is done",
    "endoftext": "<|endoftext|>: the engine's stop token",
    "eos": "the stream ended inside the message",
    "cut": "the next message began without a closing token",
}


@dataclass(slots=True)
class TokenCounts:
    """Tokens fed so far, by use. `header` is everything that is not content: specials, header words, dropped tokens."""

    reasoning: int = 0
    final: int = 0
    tool_call: int = 0
    other: int = 0
    header: int = 0

    @property
    def total(self) -> int:
        return self.reasoning + self.final + self.tool_call + self.other + self.header
