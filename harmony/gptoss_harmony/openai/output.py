"""Model output as both OpenAI APIs see it: reasoning, text and calls, one piece at a time.

`Reader` takes whole messages or the parser's deltas and makes the same items of both, so a streamed answer and a
whole one cannot differ. What the APIs have no place for stays in the messages: results of tools and words of users
that the model made up, calls after the first where parallel calls are off, text after a call's JSON.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gptoss_harmony.messages import Message, Role
from gptoss_harmony.openai.tool_table import ToolTable
from gptoss_harmony.openai.tool_types import Declared
from gptoss_harmony.parsing.events import Delta, Event, Header, MessageEnd, MessageStart
from gptoss_harmony.parsing.flags import is_unfinished
from gptoss_harmony.tokens import ANALYSIS, COMMENTARY, END, FINAL


class ItemKind(Enum):
    REASONING = "reasoning"
    PREAMBLE = "preamble"
    ANSWER = "answer"
    CALL = "call"


_KINDS = {ANALYSIS: ItemKind.REASONING, COMMENTARY: ItemKind.PREAMBLE}


class Step(Enum):
    START = "start"
    TEXT = "text"
    END = "end"


@dataclass(slots=True, eq=False)
class Item:
    """One piece of output. `name` is the API name of the tool of a call; `text` is then its arguments, JSON.

    An answer with a `name` is the body of a call that the request allows no model to make: see `Reader`. `complete` is
    False while it is written, and stays so if a limit cut it off.
    """

    kind: ItemKind
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    complete: bool = False
    declared: Declared | None = None  # the tool of a call, if the request has it
    message: Message | None = None  # whole, once the model has ended it
    call_id: str = field(default_factory=lambda: make_id("call"))

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class FirstJson:
    """Passes text through up to the end of its first JSON object or array; what follows is not an argument.

    Text that starts with anything else passes through whole.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = self._done = False
        self._raw: bool | None = None

    def feed(self, text: str) -> str:
        if self._raw is None and (start := text.lstrip()):
            self._raw = start[0] not in "{["
        if self._raw:
            return text
        for i, char in enumerate(text):
            if self._done:
                return text[:i]
            self._step(char)
        return text

    def _step(self, char: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            else:
                self._in_string = char != '"'
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._done = self._depth <= 0


class CodeArgument:
    """Raw code as the JSON object ``{"code": ...}``: the python tool takes text, the APIs want JSON arguments."""

    _HEAD = '{"code": "'
    _TAIL = '"}'

    def __init__(self) -> None:
        self._open = False

    def feed(self, text: str) -> str:
        head = "" if self._open else self._HEAD
        self._open = True
        return head + json.dumps(text, ensure_ascii=False)[1:-1]

    def close(self) -> str:
        return self._TAIL if self._open else self._HEAD + self._TAIL


class StopText:
    """Passes text through up to the first of some stop strings; an end that may begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit: str | None = None  # the stop string that was found

    def feed(self, text: str) -> str:
        if self.hit:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        cut = min(found)[0] if found else min(_find_beginning(text, stop) for stop in self._stops)
        self.hit = min(found)[1] if found else None
        self._held = "" if found else text[cut:]
        return text[:cut]

    def close(self) -> str:
        return self._held


def _find_beginning(text: str, stop: str) -> int:
    """Where the longest end of `text` that is a beginning of `stop` starts."""
    return next(at for at in range(max(0, len(text) - len(stop) + 1), len(text) + 1) if stop.startswith(text[at:]))


class Reader:
    """Turns messages into items. `items` grows; `current` is the one being written.

    `stops`: strings that end the answer, before their first occurrence in its text; reasoning and arguments may hold
    them. `stopped` is then True and nothing more is shown. `may_call` false: the request has no tools, or a
    `tool_choice` of none, so a call is none, and its body is content. A message that was cut off in its header is
    nothing at all.
    """

    def __init__(
        self, tools: ToolTable, parallel: bool = True, stops: Sequence[str] = (), may_call: bool = True
    ) -> None:
        self.items: list[Item] = []
        self.undeclared: list[str] = []  # tools called that were not among those declared
        self._tools = tools
        self._parallel = parallel
        self._may_call = may_call
        self._stops = stops
        self.current: Item | None = None  # None between messages and in messages that the APIs do not show
        self.stop: str | None = None  # the stop string that ended the answer
        self._filter: FirstJson | CodeArgument | StopText | None = None
        self._over = False

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    @property
    def calls(self) -> list[Item]:
        return [item for item in self.items if item.kind is ItemKind.CALL]

    @property
    def called(self) -> bool:
        return any(item.kind is ItemKind.CALL for item in self.items)

    @property
    def in_answer(self) -> bool:
        """Is text that the APIs show as content being written?"""
        return (
            self.current is not None and self.current.kind in (ItemKind.PREAMBLE, ItemKind.ANSWER) and not self.stopped
        )

    @property
    def uncalled(self) -> list[str]:
        """API names of the tools that the model called although it could not."""
        return [item.name for item in self.items if item.name and item.kind is not ItemKind.CALL]

    def start(self, header: Header | Message, flags: Sequence[str] = ()) -> Item | None:
        """Opens the item of a message with these header fields; None if the APIs do not show that message."""
        self.current = self._filter = None
        if is_unfinished(flags):
            return None
        name = None if "abandoned_call" in flags else self._tools.api_name(header.recipient)
        if header.role != Role.ASSISTANT or _is_result(header):
            self._over = self._over or self.called
        elif self._over or (name is not None and self.called and not self._parallel):
            self._over = True
        elif name is None:
            self.current = self._open_text(_KINDS.get(header.channel or "", ItemKind.ANSWER))
        else:
            self.current = self._open_call(name, "undeclared_tool" in flags)
            self.current.declared = self._tools.find(header.recipient)
        return self.current

    def _open_text(self, kind: ItemKind, name: str = "") -> Item:
        self._filter = StopText(self._stops) if self._stops and kind is not ItemKind.REASONING else None
        self.items.append(Item(kind, name))
        return self.items[-1]

    def _open_call(self, name: str, undeclared: bool) -> Item:
        if not self._may_call:
            return self._open_text(ItemKind.ANSWER, name)
        if undeclared:
            self.undeclared.append(name)
        self._filter = CodeArgument() if name == "python" and self._tools.is_builtin(name) else FirstJson()
        self.items.append(Item(ItemKind.CALL, name))
        return self.items[-1]

    def delta(self, text: str) -> str:
        """Adds text to the current item; returns what of it the APIs show (for a call: the JSON of its arguments)."""
        shown = self._grow(self._filter.feed(text) if text and self._filter else text)
        if isinstance(self._filter, StopText) and self._filter.hit:
            self.stop = self._filter.hit
            self._over = True
        return shown

    def end(self, truncated: bool = False) -> str:
        """Closes the open item; returns the last piece of it. A truncated call keeps its unfinished arguments."""
        tail = ""
        if isinstance(self._filter, StopText):
            tail = self._filter.close()
        elif self.current and self.current.kind is ItemKind.CALL and not truncated:
            if isinstance(self._filter, CodeArgument):
                tail = self._filter.close()
            elif not self.current.text.strip():
                tail = "{}"
        tail = self._grow(tail)
        if self.current:
            self.current.complete = not truncated
        self.current = self._filter = None
        return tail

    def _grow(self, text: str) -> str:
        if self.current is None:
            return ""
        self.current.pieces.append(text)
        return text

    def feed(self, events: Iterable[Event], truncated: bool) -> Iterator[tuple[Step, Item, str]]:
        """What the parser's events change: (step, item, new text). `truncated`: the end of the stream is a limit's."""
        for event in events:
            if isinstance(event, MessageStart):
                if item := self.start(event.header, event.flags):
                    yield Step.START, item, ""
            elif item := self.current:
                if isinstance(event, Delta):
                    text = self.delta(event.text)
                else:
                    item.message = event.message
                    text = self.end(truncated and event.reason == "eos" and _broke_off(event.message))
                if text:
                    yield Step.TEXT, item, text
                if isinstance(event, MessageEnd):
                    yield Step.END, item, ""


def read_messages(messages: Iterable[Message], reader: Reader, truncated: bool) -> Reader:
    """Whole messages at once. `truncated`: generation hit a limit, inside the last one if that was never closed."""
    messages = list(messages)
    for i, message in enumerate(messages):
        if item := reader.start(message, message.flags):
            item.message = message
        reader.delta(message.text)
        reader.end(truncated and i == len(messages) - 1 and _broke_off(message))
    return reader


def _broke_off(message: Message) -> bool:
    """True if the stream ended inside the content, so that the text is a beginning."""
    return message.end is None and not {"missing_end", "stray_text"} & set(message.flags)


def _is_result(header: Header | Message) -> bool:
    """A tool's result in the model's own name: it is addressed to the assistant, not to the user."""
    return header.recipient == Role.ASSISTANT and header.channel == COMMENTARY


def was_closed(messages: Sequence[Message]) -> bool:
    """True if the output ends where a model may stop; False if it just broke off, or ends with reasoning or a
    preamble.
    """
    if not messages or messages[-1].end is None or is_unfinished(messages[-1].flags):
        return False
    last = messages[-1]
    return last.end != END or last.channel == FINAL or last.recipient is not None


def choose_finish_reason(messages: Sequence[Message], told: str | None) -> str:
    """The engine's reason, or what the end of the output says. Who stops inside a header has not finished."""
    if told in (None, "stop") and messages and is_unfinished(messages[-1].flags):
        return "length"
    return told or ("stop" if was_closed(messages) else "length")


def make_id(prefix: str) -> str:
    """A fresh API id such as ``call_0f3a...`` (96 random bits)."""
    return f"{prefix}_{secrets.token_hex(12)}"
