"""What every parsing mode shares: states, kinds of input, and a message that is being read.

Theory of operation

                 <|start|>             <|message|>
    EXPECT_START ---------> HEADER -----------------> CONTENT
         ^                                               |
         +------- <|end|> <|call|> <|return|> -----------+

Inputs. `Parser` cuts what it is fed into runs of ordinary tokens (or text) and single special tokens, and names the
kind of each: `InputKind`. The end of the stream is an input too. An action cannot see where one `feed` ended and the
next began, which is why whole streams, single tokens and random chunks give the same messages.

The table. What an input does is data: `tolerant.ACTIONS`, `strict.STRICT` and `strict.LAX` map (state, kind) to an
action, a function of the machine and the input. Each of them is total: every state has an entry for every kind (a
test counts them), so no output of a model can meet a case that nobody thought of. Refusing is an action like any
other; it exists in the strict tables only. A reader who wants to know what a parser does reads the table.

Who owns what.
    Parser    the cutting: `tokens`, `at`, and text that may be half a special token's name (`held`).
    Machine   the open message and the closed ones. Only `expect_start`, `begin` and `open` set the state, and each of
              them sets all that the new state needs: nothing of an earlier message can leak into the next.
    actions   the decisions of a mode: how a header is read, what is flagged. They keep nothing between two calls.
    decoder   the bytes of a character that is not complete yet. Each message gets a new one from `open`.

What holds in each state.
    EXPECT_START  `current_*` are None (but for a role given beforehand), `parts` is empty; `flags` wait for a message.
    HEADER        `header` has the ids (or texts) since ``<|start|>``, unread until the header is complete.
    CONTENT       `current_role` is set, `parts` has the text so far, `content_at` is the index of its first token.

Events. Actions collect text with `emit`. `tell` makes one Delta of what came since the last event and puts the event
behind it, so a `feed` never gives two deltas in a row, nor an empty one.

What the fast path may skip. `Parser.feed` looks a single token up in `fast` before anything else: `shared_deltas()`
inside a content while the decoder holds no bytes and no text is held back, else the empty `NO_DELTAS`. Only ordinary
tokens that are whole characters are in there, so cutting, the table, the decoder and `tell` could change nothing. It
still must keep `tokens`, `parts` and `last_content_delta`. `at`, `told` and `events` may go stale: every slower call
sets them before an action reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from gptoss_harmony.messages import HeaderForm, Message, Role, Text
from gptoss_harmony.parsing.events import Delta, Event, Header, MessageEnd, MessageStart, TokenCounts
from gptoss_harmony.parsing.token_text import NO_DELTAS, join_bytes, remember_delta, role_id, shared_deltas, token_bytes
from gptoss_harmony.parsing.utf8 import Utf8Decoder
from gptoss_harmony.tokens import ANALYSIS, CALL, CHANNEL, END, ENDOFTEXT, MESSAGE, RETURN, START


class State(StrEnum):
    """The values are those of openai-harmony's StreamState."""

    EXPECT_START = "ExpectStart"
    HEADER = "Header"
    CONTENT = "Content"

    __hash__ = str.__hash__


class InputKind(StrEnum):
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
    START: InputKind.START,
    CHANNEL: InputKind.CHANNEL,
    MESSAGE: InputKind.MESSAGE,
    **dict.fromkeys((END, CALL, RETURN), InputKind.STOP),
}
"""Special tokens that mean something; all others are SPECIAL."""

Input: TypeAlias = list[int] | str | int | None
"""The input itself: ids or text of a RUN, the id of a single token, None at the end."""

Action: TypeAlias = "Callable[[Machine, Input], None]"


@dataclass(slots=True, frozen=True)
class ParsingMode:
    """How a parser reads: which tokens mean what, what they do, and how bytes become text."""

    kinds: dict[int, InputKind]
    actions: dict[State, dict[InputKind, Action]]
    decoder: Callable[[], Utf8Decoder]


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

    def __init__(self, role: Role | None, mode: ParsingMode, tools: frozenset[str]) -> None:
        self.role = role
        self.mode = mode
        self.tools = tools
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
        self.fast = NO_DELTAS  # `shared_deltas()` while whole tokens can be looked up there
        self.parts: list[str] = []
        self.told = 0  # how many of `parts` the events told
        self.header: list[int | str] = []
        self.content_at = len(self.tokens)

    def act(self, kind: InputKind, received: Input) -> None:
        self.mode.actions[self.state][kind](self, received)

    def begin(self) -> None:
        """A header begins. `started`: ``<|start|>`` was seen; `formed`: its ids can be given back by `HeaderForm`."""
        self.state = State.HEADER
        self.header = []
        self.has_channel = False
        self.started = self.formed = True

    def collect(self, received: Input) -> None:
        if isinstance(received, list):
            self.header += received
        elif received is not None:
            self.header.append(received)
            self.has_channel = self.has_channel or received == CHANNEL

    def open(self, header: Header) -> None:
        self.state = State.CONTENT
        self.next_role = None
        self.current_role = header.role
        self.name = header.name
        self.current_channel = header.channel
        self.current_recipient = header.recipient
        self.current_content_type = header.content_type
        self.content_at = self.at + 1
        self.decoder = self.mode.decoder()
        self.fast = shared_deltas()
        self.tell(MessageStart(header, tuple(self.flags)))

    def append(self, data: bytes) -> None:
        self.emit_pieces(self.decoder.decode(data))

    def emit_pieces(self, pieces: tuple[str, ...]) -> None:
        """What the decoder just gave."""
        for text in pieces:
            self.emit(text)
        self.fast = shared_deltas() if self.decoder.clean else NO_DELTAS

    def append_run(self, run: list[int]) -> None:
        """Ordinary tokens."""
        self.append(join_bytes(run))

    def append_token(self, token: int) -> None:
        """One ordinary token. If it is whole characters, its delta is remembered for all parsers."""
        data = token_bytes()[token]
        if self.decoder.clean and token not in shared_deltas():
            remember_delta(token)
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
        self.flags = []
        self.last_reason = reason
        self.expect_start()

    def _form(self) -> HeaderForm | None:
        if not self.formed or self.textual:
            return None
        header = self.header if self.started or self.role is None else [role_id(self.role), *self.header]
        return HeaderForm(tuple(header), tuple(self.tokens[self.content_at : self.at]))  # type: ignore[arg-type]

    def count(self, counts: TokenCounts, end: int) -> None:
        """Adds the content tokens of the open message, up to index `end`, to their kind. A content that the token at
        `end` both opened and closed, for want of a ``<|message|>``, has none.
        """
        if self.current_role is not Role.ASSISTANT:
            use = "other"
        elif self.current_recipient is not None:
            use = "tool_call"
        else:
            use = "reasoning" if self.current_channel == ANALYSIS else "final"
        setattr(counts, use, getattr(counts, use) + max(0, end - self.content_at))
