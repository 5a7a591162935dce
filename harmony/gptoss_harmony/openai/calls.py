"""Calls of a history: which of them a result belongs to, and the form in which the model wrote each.

Clients parse arguments and write them again with their own spacing and order, and some give two calls one id.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from gptoss_harmony.messages import Message, Role

_Key: TypeAlias = tuple[str, str]
_K = TypeVar("_K")
_V = TypeVar("_V")
Restore: TypeAlias = Callable[[Message, str], Message]
"""(a call as a client repeats it, its id) -> the call as the model wrote it."""


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
    """The last calls as models wrote them, to be found again as a client repeats them: by its id, else by tool and
    arguments. `limit`: of what is remembered, up to three entries a call.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._calls: OrderedDict[_Key, Message] = OrderedDict()
        self._by_id: OrderedDict[str, tuple[Message, frozenset[str]]] = OrderedDict()

    def remember(self, message: Message, call_id: str = "", respelled: str | None = None) -> None:
        """`respelled`: its arguments as the API gives them out, where that is not their text (calls of typed tools).
        Headers that needed a repair are not worth repeating.
        """
        if message.role != Role.ASSISTANT or not message.recipient or not message.header:
            return
        if not set(message.flags) <= {"undeclared_tool"}:
            return
        spellings = frozenset(write_canonical(text) for text in (message.text, respelled) if text is not None)
        for spelling in spellings:
            _put(self._calls, (message.recipient, spelling), message, self._limit)
        if call_id:
            _put(self._by_id, call_id, (message, spellings), self._limit)

    def restore(self, message: Message, call_id: str = "") -> Message:
        """The call as the model wrote it, if it did and the client has not changed it; any other message as it is."""
        if message.role != Role.ASSISTANT or not message.recipient or message.header:
            return message
        name, spelling = _make_key(message)
        own, spellings = self._by_id.get(call_id, (None, frozenset[str]()))
        # Some clients lose the namespace on the way, so of two tools with one name the id says which.
        if own is not None and spelling in spellings and _last_name(own.recipient or "") == _last_name(name):
            return own
        return self._calls.get((name, spelling), message)


def _put(kept: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > limit:
        kept.popitem(last=False)


def _last_name(recipient: str) -> str:
    return recipient.partition(".")[2] or recipient


def _make_key(message: Message) -> _Key:
    return message.recipient or "", write_canonical(message.text)


def write_canonical(arguments: str) -> str:
    """JSON without spaces and with its keys in order, so that spellings of one value are equal; other text as it is.
    Numbers are what JavaScript keeps of them: whole ones are integers, long ones are rounded.
    """
    try:
        value = json.loads(arguments, parse_float=_read_number, parse_int=_read_number)
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return arguments


def _read_number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() and abs(number) <= 2**53 else number
