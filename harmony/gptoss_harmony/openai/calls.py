"""Calls of a history: which of them a result belongs to, and the form in which the model wrote each.

Clients parse arguments and write them again with their own spacing and order, and some give two calls one id.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

from gptoss_harmony.messages import Message, Role

_Key: TypeAlias = tuple[str, str]


class CallLedger:
    """Whom the calls of a conversation were addressed to, by their ids, which need not be unique."""

    def __init__(self) -> None:
        self._open: dict[str, list[str]] = {}
        self._last: dict[str, str] = {}

    def add(self, call_id: str, recipient: str) -> None:
        self._open.setdefault(call_id, []).append(recipient)
        self._last[call_id] = recipient

    def take(self, call_id: str, named: str | None = None) -> str | None:
        """The recipient of the call that a result answers; None if no call has this id.

        Of several calls with one id it is the one of the tool that the result names, else the first without a result.
        A result without an id answers the first call of the tool that it names, or the only one without a result.
        """
        waiting = self._open.get(call_id, [])
        if not call_id and not waiting:
            waiting = self._find_open(named)
        if named in waiting:
            waiting.remove(named)
            return named
        return waiting.pop(0) if waiting else self._last.get(call_id)

    def _find_open(self, named: str | None) -> list[str]:
        open_calls = [calls for calls in self._open.values() if calls]
        if named is not None:
            return next((calls for calls in open_calls if named in calls), [])
        return open_calls[0] if sum(map(len, open_calls)) == 1 else []


class WrittenCalls:
    """The last `limit` calls as models wrote them, to be found again by tool and arguments as a client repeats them."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._calls: OrderedDict[_Key, Message] = OrderedDict()

    def remember(self, messages: Iterable[Message]) -> None:
        """Headers that needed a repair are not worth repeating."""
        for message in messages:
            if message.role != Role.ASSISTANT or not message.recipient or not message.header:
                continue
            if set(message.flags) <= {"undeclared_tool"}:
                key = _make_key(message)
                self._calls[key] = message
                self._calls.move_to_end(key)
        while len(self._calls) > self._limit:
            self._calls.popitem(last=False)

    def restore(self, message: Message) -> Message:
        """The call as the model wrote it, if it did; any other message as it is."""
        if message.role != Role.ASSISTANT or not message.recipient:
            return message
        return self._calls.get(_make_key(message), message)


def _make_key(message: Message) -> _Key:
    return message.recipient or "", write_canonical(message.text)


def write_canonical(arguments: str) -> str:
    """JSON without spaces and with its keys in order, so that spellings of one value are equal; other text as it is."""
    try:
        value = json.loads(arguments)
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments
