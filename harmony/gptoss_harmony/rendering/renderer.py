"""Conversations to token ids: with form="role" those of openai-harmony 0.0.8, by default those of its fork.

`render` gives ids; `render_pieces` special ids and texts for a backend that tokenises by itself; `render_text` a text
for people; `render_spans` ids with the spans that training and KV reuse need. A `Renderer` remembers messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import Literal, TypeAlias, TypeVar

from gptoss_harmony.messages import Conversation, Message, Role, Text
from gptoss_harmony.rendering.pieces import (
    Form,
    Piece,
    author_pieces,
    content_texts,
    end_token,
    header_pieces,
    message_pieces,
)
from gptoss_harmony.rendering.policies import Drop, kept_messages
from gptoss_harmony.rendering.sections import has_functions
from gptoss_harmony.tokens import FINAL, FIRST_SPECIAL, MESSAGE, RETURN, SPECIAL_NAMES, START
from gptoss_harmony.vocabulary import Vocabulary, load_vocabulary

Mode = Literal["completion", "training", "plain"]
Headers = Literal["canonical", "as_parsed"]
Messages: TypeAlias = Conversation | Iterable[Message]
_P = TypeVar("_P", bound=Piece)

MEMO_ENTRIES = 4096
"""Headers, with their end token, that a renderer remembers; there are few different ones in practice."""


class Renderer:
    """A vocabulary with the ids of what it has encoded before.

    `cache_tokens`: how many ids of whole messages to keep (about 40 bytes each), so that rendering an append-only chat
    again costs only its new text; 0 keeps none. Messages are looked up by value: changing one is safe. `form`: how
    headers are written, see `Form`.
    """

    def __init__(
        self, vocabulary: Vocabulary | None = None, cache_tokens: int = 1_000_000, form: Form = "channel"
    ) -> None:
        self.vocabulary = vocabulary or load_vocabulary()
        self.form = form
        self._limit = cache_tokens // 2
        self._headers: dict[tuple[object, ...], tuple[list[int], int]] = {}
        self._new: dict[tuple[object, ...], list[int]] = {}
        self._old: dict[tuple[object, ...], list[int]] = {}
        self._new_tokens = 0

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self.vocabulary.encode(piece) if isinstance(piece, str) else (piece,)
        return ids

    def extend(self, ids: list[int], message: Message, functions: bool = False, headers: Headers = "canonical") -> None:
        """Appends the ids of one message; `functions`: the conversation declares function tools. Raises RenderError."""
        if headers == "as_parsed" and message.header is not None:
            ids += self._parsed_ids(message)
        elif self._limit and (key := _make_key(message, functions)):
            ids += self._new.get(key) or self._remember(key, message, functions)
        else:
            self._encode_message(ids, message, functions)

    def _remember(self, key: tuple[object, ...], message: Message, functions: bool) -> list[int]:
        """Two generations: when the new one is full it becomes the old one, whose unused messages are forgotten."""
        ids = self._old.pop(key, None)
        if ids is None:
            self._encode_message(ids := [], message, functions)
        if self._new_tokens + len(ids) > self._limit:
            self._old = self._new
            self._new = {}
            self._new_tokens = 0
        self._new[key] = ids
        self._new_tokens += len(ids)
        return ids

    def _encode_message(self, ids: list[int], message: Message, functions: bool) -> None:
        header, end = self._header_ids(message)
        encode = self.vocabulary.encode
        parts = message.content
        ids += header
        if len(parts) == 1 and isinstance(part := parts[0], Text):  # most messages
            ids += encode(part.text)
        else:
            for text in content_texts(message, functions):
                ids += encode(text)
        ids.append(end)

    def _header_ids(self, message: Message) -> tuple[list[int], int]:
        key = (message.role, message.name, message.recipient, message.channel, message.content_type)
        known = self._headers.get(key)
        if known is None:
            if len(self._headers) >= MEMO_ENTRIES:
                self._headers.clear()
            known = self._headers[key] = self.encode(header_pieces(message, self.form)), end_token(message)
        return known

    def _parsed_ids(self, message: Message) -> list[int]:
        """The ids that the model wrote, if they still say what the message says; else its text encoded."""
        form = message.header
        assert form is not None
        content: Sequence[int] | None = form.content
        if content is None or self.vocabulary.decode(content) != message.text:
            content = self.encode(content_texts(message, False))
        return [START, *form.tokens, MESSAGE, *content, end_token(message) if message.end is None else message.end]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a message stands: ids[start:end]. ids[trained:end] is what the model is trained to write, if anything."""

    message: int
    start: int
    end: int
    trained: int | None


@dataclass(frozen=True, slots=True)
class Rendering:
    """`spans` of the messages that were not dropped; ids[:stable] stays as it is when the turn is finished."""

    ids: list[int]
    spans: list[Span]
    stable: int

    @property
    def loss_mask(self) -> list[bool]:
        """One bool per id: does the loss count it?"""
        mask = [False] * len(self.ids)
        for span in self.spans:
            if span.trained is not None:
                mask[span.trained : span.end] = [True] * (span.end - span.trained)
        return mask


def render(
    conversation: Messages,
    next_role: Role | str = Role.ASSISTANT,
    mode: Mode = "completion",
    *,
    drop: Drop = "upstream",
    prefill: Message | None = None,
    headers: Headers = "canonical",
    form: Form = "channel",
    renderer: Renderer | None = None,
) -> list[int]:
    """Token ids of a conversation.

    mode: ``completion`` ends with ``<|start|>`` and `next_role`; ``training`` ends a last assistant message on final
    with ``<|return|>``; ``plain`` adds nothing. drop: analysis to leave out, see policies.py. prefill (completion): the
    message that the model shall go on with; its role, channel, recipient, content type and text begin the answer.
    headers: ``as_parsed`` gives the model's own messages back id by id (`Message.header`), for KV reuse.
    form: see `Form`; a `renderer` has its own. renderer: keeps ids of earlier messages; None encodes everything. Raises
    RenderError.
    """
    renderer = renderer or _stateless_renderer(form)
    messages, kept, functions = _select(conversation, drop)
    ids: list[int] = []
    for message in compress(messages, kept):
        renderer.extend(ids, message, functions, headers)
    opening = renderer.encode(_open_answer(next_role, prefill, renderer.form)) if mode == "completion" else []
    return _finish(ids, messages, mode, opening)


def render_pieces(
    conversation: Messages,
    next_role: Role | str = Role.ASSISTANT,
    mode: Mode = "completion",
    *,
    drop: Drop = "upstream",
    prefill: Message | None = None,
    form: Form = "channel",
) -> list[Piece]:
    """As `render`, but special ids and texts: tokenise each text by itself, with special tokens off."""
    messages, kept, functions = _select(conversation, drop)
    pieces: list[Piece] = []
    for message in compress(messages, kept):
        pieces += message_pieces(message, functions, form)
    return _finish(pieces, messages, mode, _open_answer(next_role, prefill, form) if mode == "completion" else [])


def render_text(
    conversation: Messages,
    next_role: Role | str = Role.ASSISTANT,
    mode: Mode = "completion",
    *,
    drop: Drop = "upstream",
    prefill: Message | None = None,
    form: Form = "channel",
) -> str:
    """As `render`, as one text for people. Not for tokenising: text that looks special cannot be told apart."""
    pieces = render_pieces(conversation, next_role, mode, drop=drop, prefill=prefill, form=form)
    return "".join([piece if isinstance(piece, str) else SPECIAL_NAMES[piece - FIRST_SPECIAL] for piece in pieces])


def by_assistant(message: Message) -> bool:
    return message.role == Role.ASSISTANT


def render_spans(
    conversation: Messages,
    *,
    drop: Drop = "upstream",
    train: Callable[[Message], bool] = by_assistant,
    headers: Headers = "canonical",
    form: Form = "channel",
    renderer: Renderer | None = None,
) -> Rendering:
    """Ids in mode ``training`` with the span of each message; `train` says which messages the loss counts.

    Of these, everything after the author counts: recipient, channel, content and the end token. The default `drop`
    leaves out chain of thought as openai-harmony does; to train on it pass ``drop="none"``.
    """
    renderer = renderer or _stateless_renderer(form)
    messages, kept, functions = _select(conversation, drop)
    ids: list[int] = []
    spans: list[Span] = []
    for i in compress(range(len(messages)), kept):
        start = len(ids)
        renderer.extend(ids, messages[i], functions, headers)
        author = len(renderer.encode(author_pieces(messages[i])))
        spans.append(Span(i, start, len(ids), start + 1 + author if train(messages[i]) else None))
    return Rendering(_finish(ids, messages, "training", []), spans, _count_stable(messages, kept, spans, drop))


def _select(conversation: Messages, drop: Drop) -> tuple[list[Message], list[bool], bool]:
    """All messages, which of them are kept, and whether function tools are declared (dropped messages count)."""
    messages = list(conversation)
    developer = Role.DEVELOPER
    declared = [part for message in messages if message.role == developer for part in message.content]
    return messages, kept_messages(messages, drop), has_functions(declared)


def _open_answer(next_role: Role | str, prefill: Message | None, form: Form) -> list[Piece]:
    if prefill is None:
        return [START, Role(next_role).value]
    return [*header_pieces(prefill, form), *content_texts(prefill, False)]


def _finish(out: list[_P], messages: Sequence[Message], mode: Mode, opening: list[_P]) -> list[_P]:
    if mode == "training" and out and messages[-1].role == Role.ASSISTANT and messages[-1].channel == FINAL:
        out[-1] = RETURN  # type: ignore[assignment]
    out += opening
    return out


def _count_stable(messages: Sequence[Message], kept: Sequence[bool], spans: Sequence[Span], drop: Drop) -> int:
    """Ids before the first message that the policy would drop once an answer is there."""
    answered = kept_messages([*messages, Message.assistant("", FINAL)], drop)
    unstable = next(
        (i for i, (now, then) in enumerate(zip(kept, answered, strict=False)) if now != then), len(messages)
    )
    return max((span.end for span in spans if span.message < unstable), default=0)


def _make_key(message: Message, functions: bool) -> tuple[object, ...]:
    """All that a message's ids depend on, by value. repr tells 1, 1.0 and True apart, which compare equal.

    Empty for a schema nested too deeply for repr: not remembered, and most likely refused with a clear error.
    """
    parts = message.content
    content: object
    if len(parts) == 1 and isinstance(parts[0], Text):
        content = parts[0].text
    else:
        try:
            content = (functions, *[part.text if isinstance(part, Text) else (repr(part),) for part in parts])
        except RecursionError:
            return ()
    return (message.role, message.name, message.recipient, message.channel, message.content_type, content)


@cache
def _stateless_renderer(form: Form) -> Renderer:
    return Renderer(cache_tokens=0, form=form)
