"""What every parsing mode shares: states, kinds of input, and a message that is being read.

The input is cut into runs of ordinary tokens (or text) and single special tokens. What each does in each state is
data: `robust.ACTIONS`, `reference.STRICT` and `reference.LAX` map state and kind of input to a function of the machine.

                 <|start|>             <|message|>
    EXPECT_START ---------> HEADER -----------------> CONTENT
         ^                                               |
         +------- <|end|> <|call|> <|return|> -----------+
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TypeAlias

from gptoss_harmony.messages import HeaderForm, Message, Role, Text
from gptoss_harmony.parsing.events import Delta, Event, Header, MessageEnd, MessageStart, TokenCounts
from gptoss_harmony.parsing.utf8 import Utf8Decoder
from gptoss_harmony.tokens import ANALYSIS, CALL, CHANNEL, END, ENDOFTEXT, MESSAGE, RETURN, START
from gptoss_harmony.vocabulary import load_vocabulary


class State(StrEnum):
    """The values are those of openai-harmony's StreamState."""

    EXPECT_START = "ExpectStart"
    HEADER = "Header"
    CONTENT = "Content"

    __hash__ = str.__hash__


class Kind(StrEnum):
    """What the parser sees: a run of ordinary tokens, a special token, an id outside the vocabulary, the end."""

    RUN = "run"
    START = "start"
    CHANNEL = "channel"
    MESSAGE = "message"
    STOP = "stop"
    SPECIAL = "special"
    UNKNOWN = "unknown"
    EOS = "eos"

    __hash__ = str.__hash__


STOP_REASONS: dict[int | None, str] = {END: "end", CALL: "call", RETURN: "return", ENDOFTEXT: "endoftext", None: "eos"}
KINDS = {
    START: Kind.START,
    CHANNEL: Kind.CHANNEL,
    MESSAGE: Kind.MESSAGE,
    **dict.fromkeys((END, CALL, RETURN), Kind.STOP),
}
"""Special tokens that mean something; all others are SPECIAL."""

Item: TypeAlias = list[int] | str | int | None
"""The input itself: ids or text of a RUN, the id of a single token, None at the end."""

Action: TypeAlias = "Callable[[Machine, Item], None]"


@dataclass(slots=True, frozen=True)
class Mode:
    """How a parser reads: which tokens mean what, what they do, and how bytes become text."""

    kinds: dict[int, Kind]
    actions: dict[State, dict[Kind, Action]]
    decoder: Callable[[], Utf8Decoder]


@cache
def token_bytes() -> list[bytes]:
    """Bytes by id, the special tokens' names included."""
    return load_vocabulary().token_bytes


def join_bytes(run: list[int]) -> bytes:
    """Bytes of ordinary tokens. The list is twice as fast as `map`."""
    table = token_bytes()
    return b"".join([table[token] for token in run])


@cache
def deltas() -> dict[int, Delta]:
    """Tokens seen so far that are whole characters: spares most tokens the decoder. Shared by all parsers, only
    grows.
    """
    return {}


NO_DELTAS: dict[int, Delta] = {}


@cache
def _role_id(role: Role) -> int:
    return token_bytes().index(role.value.encode())


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Machine:
    """The message that is being read, and the ones before it. Everything but `Parser`'s documented names is
    internal.
    """

    __slots__ = (
        "at",
        "closed_counts",
        "content_at",
        "current_channel",
        "current_content_type",
        "current_recipient",
        "current_role",
        "decoder",
        "events",
        "fast",
        "flags",
        "formed",
        "has_channel",
        "header",
        "last_content_delta",
        "last_reason",
        "messages",
        "mode",
        "name",
        "next_role",
        "parts",
        "role",
        "started",
        "state",
        "textual",
        "tokens",
        "told",
        "tools",
    )

    def __init__(self, role: Role | None, mode: Mode, tools: frozenset[str]) -> None:
        self.role, self.mode, self.tools = role, mode, tools
        self.reset()

    def reset(self) -> None:
        """Back to the beginning, as if just made."""
        self.messages: list[Message] = []
        self.tokens: list[int] = []
        self.events: list[Event] = []
        self.textual = False  # some of the stream came as text
        self.at = 0  # index in `tokens` of what is being read
        self.flags: list[str] = []  # repairs that concern the open or the next message
        self.closed_counts = TokenCounts()
        self.last_reason = ""
        self.last_content_delta: str | None = None
        self.next_role = self.role
        self.expect_start()
        if self.role is not None:
            self.begin()
            self.started = False

    def expect_start(self) -> None:
        self.state = State.EXPECT_START
        self.current_role = self.next_role
        self.current_channel: str | None = None
        self.current_recipient: str | None = None
        self.current_content_type: str | None = None
        self.last_content_delta = None
        self.name: str | None = None
        self.fast = NO_DELTAS  # `deltas()` while whole tokens can be looked up there
        self.parts: list[str] = []
        self.told = 0  # how many of `parts` the events told
        self.header: list[int | str] = []
        self.content_at = len(self.tokens)

    def act(self, kind: Kind, item: Item) -> None:
        self.mode.actions[self.state][kind](self, item)

    def begin(self) -> None:
        """A header begins. `started`: ``<|start|>`` was seen; `formed`: its ids can be given back by `HeaderForm`."""
        self.state = State.HEADER
        self.header = []
        self.has_channel = False
        self.started = self.formed = True

    def collect(self, item: Item) -> None:
        if isinstance(item, list):
            self.header += item
        elif item is not None:
            self.header.append(item)
            self.has_channel = self.has_channel or item == CHANNEL

    def open(self, header: Header) -> None:
        self.state = State.CONTENT
        self.next_role = None
        self.current_role, self.name, self.current_channel = header.role, header.name, header.channel
        self.current_recipient, self.current_content_type = header.recipient, header.content_type
        self.content_at = self.at + 1
        self.decoder = self.mode.decoder()
        self.fast = deltas()
        self.tell(MessageStart(header, tuple(self.flags)))

    def append(self, data: bytes) -> None:
        self.emit_pieces(self.decoder.decode(data))

    def emit_pieces(self, pieces: tuple[str, ...]) -> None:
        """What the decoder just gave."""
        for text in pieces:
            self.emit(text)
        self.fast = deltas() if self.decoder.clean else NO_DELTAS

    def append_run(self, run: list[int]) -> None:
        """Ordinary tokens."""
        self.append(join_bytes(run))

    def append_token(self, token: int) -> None:
        """One ordinary token. If it is whole characters, its delta is remembered for all parsers."""
        data = token_bytes()[token]
        if self.decoder.clean and token not in deltas() and _is_utf8(data):
            deltas()[token] = Delta(data.decode())
        self.append(data)

    def append_text(self, text: str) -> None:
        self.emit(self.decoder.flush() + text)

    def emit(self, text: str) -> None:
        if text:
            self.parts.append(text)

    def begin_call(self) -> None:
        self.events = []
        self.told = len(self.parts)

    def tell(self, event: Event | None = None) -> None:
        """The text that came since the last event, as one, then `event`."""
        text = "".join(self.parts[self.told :])
        self.told = len(self.parts)
        self.last_content_delta = text or None
        if text:
            self.events.append(Delta(text))
        if event:
            self.events.append(event)

    def close(self, end: int | None, reason: str, flags_of: Callable[[Message, str], list[str]]) -> None:
        """The open message is complete. `flags_of`: what is odd about its content."""
        self.emit(self.decoder.flush())
        assert self.current_role is not None
        message = Message(
            self.current_role,
            [Text("".join(self.parts))],
            self.name,
            self.current_channel,
            self.current_recipient,
            self.current_content_type,
            self._form(),
            end,
            tuple(self.flags),
        )
        message.flags += tuple(flags_of(message, reason))
        self.count(self.closed_counts, self.at)
        self.messages.append(message)
        self.tell(MessageEnd(reason, message))
        self.flags, self.last_reason = [], reason
        self.expect_start()

    def _form(self) -> HeaderForm | None:
        if not self.formed or self.textual:
            return None
        header = self.header if self.started or self.role is None else [_role_id(self.role), *self.header]
        return HeaderForm(tuple(header), tuple(self.tokens[self.content_at : self.at]))  # type: ignore[arg-type]

    def count(self, counts: TokenCounts, end: int) -> None:
        """Adds the content tokens of the open message, up to index `end`, to their kind. A content that the token at
        `end` both opened and closed, for want of a ``<|message|>``, has none.
        """
        if self.current_role is not Role.ASSISTANT:
            kind = "other"
        elif self.current_recipient is not None:
            kind = "tool_call"
        else:
            kind = "reasoning" if self.current_channel == ANALYSIS else "final"
        setattr(counts, kind, getattr(counts, kind) + max(0, end - self.content_at))
