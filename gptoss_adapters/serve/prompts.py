"""Conversations to prompts, so that an append-only chat only ever appends ids.

What is rendered is remembered message by message, and a call is given back in the header form in which the model wrote
it: otherwise the first call of a conversation would end what its next prompt shares with the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from gptoss_harmony import Conversation, Message, Renderer, Role, render
from gptoss_harmony.messages import HeaderForm

_REMEMBERED = 4096  # messages
_CACHED_TOKENS = 2 * 131_072  # two full contexts, about 10 MB
Key = tuple[str | None, str | None, str]


class Prompts:
    def __init__(self) -> None:
        self._renderer = Renderer(cache_tokens=_CACHED_TOKENS)
        self._renderer.vocabulary.encode("x")  # the encoder's tables are built now, not in the first request
        self._forms: OrderedDict[Key, HeaderForm] = OrderedDict()

    def ids(self, conversation: Conversation) -> list[int]:
        """The prompt of a conversation from which finished reasoning has been dropped. Raises RenderError."""
        messages = [self._restore_form(message) for message in conversation.messages]
        return render(messages, drop="none", headers="as_parsed", renderer=self._renderer)

    def remember(self, messages: Iterable[Message]) -> None:
        """What a model wrote. Headers that needed a repair are not worth repeating."""
        for message in messages:
            if message.role == Role.ASSISTANT and message.recipient and message.header and not message.flags:
                self._forms[_make_key(message)] = message.header
                self._forms.move_to_end(_make_key(message))
        while len(self._forms) > _REMEMBERED:
            self._forms.popitem(last=False)

    def _restore_form(self, message: Message) -> Message:
        if not message.recipient or message.role != Role.ASSISTANT:
            return message
        form = self._forms.get(_make_key(message))
        return message if form is None else replace(message, header=form)


def _make_key(message: Message) -> Key:
    return message.channel, message.recipient, message.text
