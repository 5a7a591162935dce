"""Token ids (or text) in, messages out: a sans-IO parser for what gpt-oss writes."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, TypeAlias

from gptoss_harmony.errors import ParseError
from gptoss_harmony.messages import Message, Role
from gptoss_harmony.parsing import strict, tolerant
from gptoss_harmony.parsing.events import Event, TokenCounts
from gptoss_harmony.parsing.machine import InputKind, Machine, State
from gptoss_harmony.parsing.token_text import NO_DELTAS
from gptoss_harmony.parsing.tool_names import ToolNames, tool_names
from gptoss_harmony.tokens import N_RANKS, SPECIAL_TOKENS, is_special
from gptoss_harmony.vocabulary import load_vocabulary

Strictness: TypeAlias = bool | Literal["lax"]

_MODES = {False: tolerant.MODE, True: strict.STRICT_MODE, "lax": strict.LAX_MODE}
_MARK_BYTE = re.compile(rb"[\x%02x-\xff]" % (N_RANKS >> 16))
_SPECIAL_NAME = re.compile(r"<\|[a-z_0-9]+\|>")
_NAME_BEGINNING = re.compile(r"<(\|([a-z_0-9]+\|?)?)?\Z")


class Parser(Machine):
    """Reads one completion, or whole conversations (`role=None`), as they come.

    `role`: whose message is already open because the prompt ends with ``<|start|>`` and that role; None: the stream
    begins with ``<|start|>``. `strict`: False never raises and repairs (see `FLAGS` in `flags.py`); True has the
    states, results and errors of openai-harmony 0.0.8, ``"lax"`` those of its strict=False. `tools`: the declared
    tools; with them a call is recognised where a model wrote only a part of its name.

    Plain attributes, so that reading them costs nothing: `current_role`, `current_channel`, `current_recipient`,
    `current_content_type` of the open message (None in a header, but for a given role), `state`, `messages` (closed
    ones), `tokens` (all ids fed), `last_content_delta` (text of the last call that belongs to the open message, or
    None).
    """

    __slots__ = ("held",)

    def __init__(
        self, role: Role | str | None = "assistant", strict: Strictness = False, tools: ToolNames | None = None
    ) -> None:
        super().__init__(None if role is None else Role(role), _MODES[strict], tool_names(tools))

    def reset(self) -> None:
        super().reset()
        self.held = ""

    def feed(self, ids: Sequence[int]) -> list[Event]:
        """Reads any number of tokens.

        Raises ParseError in strict mode only (`messages` closed before stay readable), OverflowError for a number that
        is no id of any vocabulary: below 0 or above 2**32 - 1, as openai-harmony does.
        """
        if len(ids) == 1:
            token = ids[0]
            delta = self.fast.get(token)
            if delta is not None:  # whole characters inside a content
                self.tokens.append(token)
                self.last_content_delta = text = delta.text
                self.parts.append(text)
                return [delta]
            if self.state is State.CONTENT and 0 <= token < N_RANKS and not self.held:  # a part of a character
                self.tokens.append(token)
                self.begin_call()
                self.append_token(token)
                self.tell()
                return self.events
        self._begin_call()
        try:
            self._read(ids)
        except ParseError:
            del self.tokens[self.at + 1 :]
            raise
        self.tell()
        return self.events

    def feed_text(self, text: str) -> list[Event]:
        """Reads text in which special tokens stand as their names. An end that may be the beginning of a name is held
        back until the next call. Token counts and `HeaderForm` need ids and are not available."""
        text = self.held + text
        self.held = ""
        self.textual = True
        self._begin_call()
        at = 0
        for found in _SPECIAL_NAME.finditer(text):
            token = SPECIAL_TOKENS.get(found[0])
            if token is not None:
                self._read_text(text[at : found.start()])
                self.act(self.mode.kinds.get(token, InputKind.SPECIAL), token)
                at = found.end()
        split = _find_held(text, at)
        self._read_text(text[at:split])
        if split < len(text):
            self.held = text[split:]
            self.fast = NO_DELTAS
        self.tell()
        return self.events

    def finish(self) -> list[Event]:
        """The end of the stream: closes what is open. Raises ParseError in strict mode, inside a header."""
        self._begin_call()
        self.at = len(self.tokens)
        self.act(InputKind.EOS, None)
        self.tell()
        return self.events

    def _begin_call(self) -> None:
        self.begin_call()
        self.last_content_delta = None
        held = self.held
        self.held = ""
        self._read_text(held)

    def _read_text(self, text: str) -> None:
        if text:
            self.act(InputKind.RUN, text)

    def _read(self, ids: Sequence[int]) -> None:
        marks = _find_marks(ids)
        tokens = self.tokens
        kinds = self.mode.kinds
        at = len(tokens)
        tokens.extend(ids)
        for mark in map(at.__add__, marks):
            if mark > at:
                self.at = at
                self.act(InputKind.RUN, tokens[at:mark])
            self.at = mark
            token = tokens[mark]
            self.act(kinds.get(token) or (InputKind.SPECIAL if is_special(token) else InputKind.UNKNOWN), token)
            at = mark + 1
        if at < len(tokens):
            self.at = at
            self.act(InputKind.RUN, tokens[at:])

    @property
    def current_content(self) -> str:
        """The text of the open message so far."""
        return "".join(self.parts)

    @property
    def counts(self) -> TokenCounts:
        """Tokens fed so far, by use; the open message included."""
        counts = replace(self.closed_counts)
        if self.state is State.CONTENT:
            self.count(counts, len(self.tokens))
        counts.header = len(self.tokens) - counts.total
        return counts

    @property
    def state_data(self) -> dict[str, Any]:
        """The state in openai-harmony's layout; `content_tokens` are the deltas, encoded again, as there."""
        if self.state is State.EXPECT_START:
            return {"state": self.state.value}
        if self.state is State.HEADER:
            return {"state": self.state.value, "header_tokens": list(self.header)}
        assert self.current_role is not None
        author = {"role": self.current_role.value} | ({} if self.name is None else {"name": self.name})
        header = {
            "author": author,
            "recipient": self.current_recipient,
            "channel": self.current_channel,
            "content_type": self.current_content_type,
        }
        encode = load_vocabulary().encode
        return {
            "state": self.state.value,
            "header": header,
            "content_tokens": [i for part in self.parts for i in encode(part)],
        }


def parse(
    ids: Sequence[int],
    role: Role | str | None = "assistant",
    strict: Strictness = False,
    tools: ToolNames | None = None,
) -> list[Message]:
    """All messages of a complete stream; the arguments are those of `Parser`."""
    parser = Parser(role, strict, tools)
    parser.feed(ids)
    parser.finish()
    return parser.messages


def _find_marks(ids: Sequence[int]) -> list[int]:
    """Indexes of the ids that are not ordinary tokens. OverflowError for what does not fit into 32 bits.

    In a long run the bytes are searched instead of the ids, several times as fast: an id of N_RANKS or more has 3 or
    more in bits 16 to 23, as have few ordinary tokens.
    """
    packed = array("I", ids)
    if len(ids) >= 64:
        if sys.byteorder == "big":
            packed.byteswap()
        raw = packed.tobytes()
        if raw[3::4].count(0) == len(ids):
            return [at for found in _MARK_BYTE.finditer(raw[2::4]) if ids[at := found.start()] >= N_RANKS]
    return [at for at, token in enumerate(ids) if token >= N_RANKS]


@cache
def _name_beginnings() -> frozenset[str]:
    return frozenset(name[:end] for name in SPECIAL_TOKENS for end in range(1, len(name)))


def _find_held(text: str, at: int) -> int:
    """Where the beginning of a special token's name starts at the end of `text`; its length if there is none."""
    found = _NAME_BEGINNING.search(text, at)
    return found.start() if found and found[0] in _name_beginnings() else len(text)
