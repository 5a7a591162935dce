"""Conversations to prompts, so that an append-only chat only ever appends ids.

What is rendered is remembered message by message, and a call is given back as the model wrote it, however the client
spells it: otherwise the first call of a conversation would end what its next prompt shares with the cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from gptoss_harmony import Conversation, Message, Renderer, render
from gptoss_harmony.openai.calls import WrittenCalls
from gptoss_harmony.openai.output import Item
from gptoss_harmony.openai.tool_calls import respell_call

_REMEMBERED = 4096  # messages
_CACHED_TOKENS = 2 * 131_072  # two full contexts, about 10 MB


class Prompts:
    def __init__(self) -> None:
        self._renderer = Renderer(cache_tokens=_CACHED_TOKENS)
        self._renderer.vocabulary.encode("x")  # the encoder's tables are built now, not in the first request
        self._calls = WrittenCalls(_REMEMBERED)

    def ids(self, conversation: Conversation) -> list[int]:
        """The prompt of a conversation from which finished reasoning has been dropped. Raises RenderError."""
        messages = [self.restore(message) for message in conversation.messages]
        return render(messages, drop="none", headers="as_parsed", renderer=self._renderer)

    def restore(self, call: Message, call_id: str = "") -> Message:
        """A call as the model wrote it, whatever a client has made of it; any other message as it is."""
        return self._calls.restore(call, call_id)

    def remember(self, calls: Iterable[Item]) -> None:
        """What a model called."""
        for call in calls:
            if call.message is not None:
                self._calls.remember(call.message, call.call_id, _respell(call))


def _respell(call: Item) -> str:
    return respell_call(call.declared, call.text) if call.declared else call.text
