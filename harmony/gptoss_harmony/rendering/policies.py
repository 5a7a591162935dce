"""Which messages a prompt leaves out: chain of thought of finished turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from gptoss_harmony.messages import Message, Role
from gptoss_harmony.tokens import ANALYSIS, FINAL

DropPolicy: TypeAlias = Callable[[Sequence[Message]], Sequence[bool]]
"""For each message: is it kept?"""

Drop: TypeAlias = Literal["upstream", "documented", "none"] | DropPolicy


def keep_all(messages: Sequence[Message]) -> list[bool]:
    return [True] * len(messages)


def drop_upstream(messages: Sequence[Message]) -> list[bool]:
    """openai-harmony's: if the last assistant message is on final, drop analysis before the *first* final."""
    assistant = Role.ASSISTANT
    last = next((message for message in reversed(messages) if message.role == assistant), None)
    if last is None or last.channel != FINAL:
        return keep_all(messages)
    first_final = next(i for i, message in enumerate(messages) if message.channel == FINAL)
    dropped = [i for i in range(first_final) if messages[i].channel == ANALYSIS]
    return _all_but(dropped, len(messages))


def drop_documented(messages: Sequence[Message]) -> list[bool]:
    """The format document's: drop analysis of every finished turn, that is before the *last* assistant final."""
    finals = [i for i, message in enumerate(messages) if message.channel == FINAL and message.role == Role.ASSISTANT]
    dropped = [i for i in range(finals[-1] if finals else 0) if messages[i].channel == ANALYSIS]
    return _all_but(dropped, len(messages))


def kept_messages(messages: Sequence[Message], drop: Drop) -> list[bool]:
    """Applies a policy, given by name or as a function. Raises ValueError for an unknown name."""
    if callable(drop):
        return list(drop(messages))
    if drop not in _POLICIES:
        raise ValueError(f"unknown drop policy (expected {', '.join(_POLICIES)} or a function / got {drop!r})")
    return _POLICIES[drop](messages)


def _all_but(dropped: Sequence[int], count: int) -> list[bool]:
    keep = [True] * count
    for i in dropped:
        keep[i] = False
    return keep


_POLICIES = {"upstream": drop_upstream, "documented": drop_documented, "none": keep_all}
