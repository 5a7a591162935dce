"""The public names of openai-harmony 0.0.8: switch with ``from gptoss_harmony.compat import openai_harmony``.

Same ids, same parses, same error classes. Different: classes are dataclasses instead of pydantic models, `Role` prints
as its plain word, messages of `StreamableParser` are made once, and defaults of many digits are printed exactly.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Literal, cast

from gptoss_harmony import messages as ours
from gptoss_harmony.compat.harmony_messages import (
    Author,
    ChannelConfig,
    Content,
    Conversation,
    DeveloperContent,
    Message,
    SystemContent,
    TextContent,
    ToolDescription,
    ToolNamespaceConfig,
    from_ours,
)
from gptoss_harmony.errors import DecodeError, HarmonyError, ParseError, RenderError
from gptoss_harmony.messages import ReasoningEffort, Role
from gptoss_harmony.parsing.parser import Parser, parse
from gptoss_harmony.rendering.pieces import Form
from gptoss_harmony.rendering.renderer import Mode, Renderer, render
from gptoss_harmony.tokens import ACTION_STOPS, MESSAGE_STOPS, SPECIAL_TOKENS
from gptoss_harmony.vocabulary import Vocabulary, load_vocabulary

__all__ = [
    "Author",
    "ChannelConfig",
    "Content",
    "Conversation",
    "DeveloperContent",
    "HarmonyEncoding",
    "HarmonyEncodingName",
    "HarmonyError",
    "Message",
    "ReasoningEffort",
    "RenderConversationConfig",
    "RenderOptions",
    "Role",
    "StreamState",
    "StreamableParser",
    "SystemContent",
    "TextContent",
    "ToolDescription",
    "ToolNamespaceConfig",
    "load_harmony_encoding",
]


class HarmonyEncodingName(str, Enum):  # noqa: UP042 - as published
    HARMONY_GPT_OSS = "HarmonyGptOss"

    def __str__(self) -> str:
        return self.value


class StreamState(Enum):
    EXPECT_START = "ExpectStart"
    HEADER = "Header"
    CONTENT = "Content"


@dataclass
class RenderConversationConfig:
    auto_drop_analysis: bool = True


@dataclass
class RenderOptions:
    conversation_has_function_tools: bool = False


class _StrictVocabulary(Vocabulary):
    """Lone surrogates raise UnicodeEncodeError, a ValueError, instead of being replaced."""

    def encode(self, text: str) -> list[int]:
        return load_vocabulary()._encode(text)


class HarmonyEncoding:
    """Renders, parses, encodes and decodes."""

    _form: Form = "role"

    def __init__(self, inner: Vocabulary) -> None:
        self._inner = inner
        self._renderer = Renderer(_StrictVocabulary(), form=self._form)

    @property
    def name(self) -> str:
        return HarmonyEncodingName.HARMONY_GPT_OSS.value

    @cached_property
    def special_tokens_set(self) -> set[str]:
        return set(SPECIAL_TOKENS)

    def render_conversation_for_completion(
        self, conversation: Conversation, next_turn_role: Role, config: RenderConversationConfig | None = None
    ) -> list[int]:
        """Raises HarmonyError where the other three raise RuntimeError, as published."""
        return self._render(conversation, "completion", config, HarmonyError, next_turn_role)

    def render_conversation(
        self, conversation: Conversation, config: RenderConversationConfig | None = None
    ) -> list[int]:
        return self._render(conversation, "plain", config, RuntimeError)

    def render_conversation_for_training(
        self, conversation: Conversation, config: RenderConversationConfig | None = None
    ) -> list[int]:
        return self._render(conversation, "training", config, RuntimeError)

    def render(self, message: Message, render_options: RenderOptions | None = None) -> list[int]:
        options = render_options or RenderOptions()
        ids: list[int] = []
        try:
            self._renderer.extend(ids, cast(ours.Message, message), options.conversation_has_function_tools)
        except UnicodeEncodeError as error:
            raise ValueError(f"invalid message JSON: {error}") from None
        except RenderError as error:
            raise RuntimeError(str(error)) from None
        return ids

    def _render(
        self,
        conversation: Conversation,
        mode: Mode,
        config: RenderConversationConfig | None,
        error_class: type[RuntimeError],
        next_role: Role = Role.ASSISTANT,
    ) -> list[int]:
        drop: Literal["upstream", "none"] = "upstream" if config is None or config.auto_drop_analysis else "none"
        messages = cast(Iterable[ours.Message], conversation)
        try:
            return render(messages, next_role, mode, drop=drop, renderer=self._renderer)
        except UnicodeEncodeError as error:
            raise ValueError(f"invalid conversation JSON: {error}") from None
        except RenderError as error:
            raise error_class(str(error)) from None

    def parse_messages_from_completion_tokens(
        self, tokens: Sequence[int], role: Role | None = None, *, strict: bool = True
    ) -> list[Message]:
        try:
            return list(map(from_ours, parse(tokens, role, _choose_strictness(strict))))
        except ParseError as error:
            raise HarmonyError(str(error), error.code) from None

    def decode_utf8(self, tokens: Sequence[int]) -> str:
        """Raises HarmonyError if the bytes are not UTF-8."""
        data = self._decode_bytes(tokens)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise HarmonyError(f"Could not decode tokens: Invalid utf-8 sequence: {error}", "invalid_utf8") from None

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """Special tokens' text is an error unless it is allowed (then it becomes the token) or not disallowed (then
        it is text).
        """
        allowed = self.special_tokens_set if allowed_special == "all" else allowed_special
        disallowed = self.special_tokens_set - set(allowed) if disallowed_special == "all" else disallowed_special
        if disallowed and (found := _match_any(disallowed).search(text)):
            raise HarmonyError(
                f"Encountered text corresponding to disallowed special token {found[0]!r}.", "disallowed_special"
            )
        ids: list[int] = []
        for i, piece in enumerate(_match_any(allowed).split(text) if allowed else [text]):
            ids += [SPECIAL_TOKENS[piece]] if i % 2 else self._inner.encode(piece)
        return ids

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        return self._decode_bytes(tokens).decode("utf-8", errors)

    def _decode_bytes(self, tokens: Sequence[int]) -> bytes:
        for token in tokens:
            _check_id(token)
        try:
            return self._inner.decode_bytes(tokens)
        except DecodeError as error:
            raise HarmonyError(str(error), error.code) from None

    def is_special_token(self, token: int) -> bool:
        return self._inner.is_special(_check_id(token))

    def stop_tokens(self) -> list[int]:
        return sorted(MESSAGE_STOPS)

    def stop_tokens_for_assistant_actions(self) -> list[int]:
        return sorted(ACTION_STOPS)


class StreamableParser:
    """Reads completion tokens one by one. Reading an attribute costs the same however long the stream is, but for
    `current_content`, `tokens` and `state_data`, which copy."""

    def __init__(self, encoding: HarmonyEncoding, role: Role | None, *, strict: bool = True) -> None:
        self._parser = Parser(role, _choose_strictness(strict))
        self._messages: list[Message] = []

    def process(self, token: int) -> StreamableParser:
        try:
            self._parser.feed((token,))
        except ParseError as error:
            raise HarmonyError(str(error), error.code) from None
        return self

    def process_eos(self) -> StreamableParser:
        try:
            self._parser.finish()
        except ParseError as error:
            raise HarmonyError(str(error), error.code) from None
        return self

    @property
    def current_content(self) -> str:
        return self._parser.current_content

    @property
    def current_role(self) -> Role | None:
        return self._parser.current_role

    @property
    def current_content_type(self) -> str | None:
        return self._parser.current_content_type

    @property
    def last_content_delta(self) -> str | None:
        return self._parser.last_content_delta

    @property
    def messages(self) -> list[Message]:
        self._messages += map(from_ours, self._parser.messages[len(self._messages) :])
        return self._messages.copy()

    @property
    def tokens(self) -> list[int]:
        return self._parser.tokens.copy()

    @property
    def state_data(self) -> dict[str, Any]:
        return self._parser.state_data

    @property
    def state(self) -> StreamState:
        return StreamState(self._parser.state.value)

    @property
    def current_recipient(self) -> str | None:
        return self._parser.current_recipient

    @property
    def current_channel(self) -> str | None:
        return self._parser.current_channel


def load_harmony_encoding(name: str | HarmonyEncodingName) -> HarmonyEncoding:
    """The encoding ``"HarmonyGptOss"``; any other name is a ValueError. The vocabulary is loaded once per process."""
    if str(name) != HarmonyEncodingName.HARMONY_GPT_OSS.value:
        raise ValueError(f"Invalid HarmonyEncodingName: {name}")
    return HarmonyEncoding(load_vocabulary())


def _choose_strictness(strict: bool) -> Literal[True, "lax"]:
    return True if strict else "lax"


def _match_any(names: Collection[str]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, names))})")


def _check_id(token: int) -> int:
    if not 0 <= token < 2**32:
        raise OverflowError(f"no token id (expected 0 to 2**32 - 1 / got {token})")
    return token
