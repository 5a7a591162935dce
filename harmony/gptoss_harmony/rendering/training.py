"""Is a conversation fit for training? What is off, message by message, and which tokens the loss would count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_harmony.errors import HarmonyError
from gptoss_harmony.messages import Conversation, DeveloperContent, Message, Role, SystemContent
from gptoss_harmony.parsing.flags import is_json
from gptoss_harmony.rendering.policies import Drop, kept_messages
from gptoss_harmony.rendering.renderer import Rendering, render_spans
from gptoss_harmony.tokens import ANALYSIS, CHANNELS, FINAL, SPECIAL_TOKENS

_JSON_TYPES = ("json", "<|constrain|>json", None)


@dataclass(slots=True, frozen=True)
class Problem:
    """`where`: path of the value, e.g. ``messages[2].channel``; `what`: what is wrong and what to do."""

    where: str
    what: str


@dataclass(slots=True)
class Checked:
    """One conversation: its problems, and its rendering if it has one."""

    problems: list[Problem]
    messages: list[Message]
    rendering: Rendering | None

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return 0 if self.rendering is None else sum(self.rendering.loss_mask)


def check_training_line(line: str | bytes, drop: Drop = "none") -> Checked:
    """Checks one conversation in openai-harmony's layout, as JSON. `drop`: as in `render_spans`. Never raises."""
    try:
        conversation = Conversation.from_json(line)
    except HarmonyError as error:
        return Checked([Problem(getattr(error, "where", ""), str(error))], [], None)
    messages = conversation.messages
    problems = [problem for i, message in enumerate(messages) for problem in _check_message(message, f"messages[{i}]")]
    problems += _check_order(messages)
    problems += _check_dropped(messages, drop)
    try:
        rendering = render_spans(conversation, drop=drop)
    except HarmonyError as error:
        return Checked([*problems, Problem("", f"cannot be rendered: {error}")], messages, None)
    if not any(rendering.loss_mask):
        problems.append(Problem("", "no token would be trained: no assistant message is left"))
    return Checked(problems, messages, rendering)


def _check_message(message: Message, where: str) -> Iterator[Problem]:
    """What can be seen in one message."""
    if message.role is Role.ASSISTANT:
        if message.channel not in CHANNELS:
            yield Problem(
                f"{where}.channel",
                f"{message.channel!r} is no channel of an assistant message (expected {', '.join(CHANNELS)})",
            )
        if message.recipient is not None:
            yield from _check_call(message, where)
        elif not message.text.strip():
            yield Problem(f"{where}.content", "empty assistant message: the model would learn to say nothing")
    if message.role is Role.TOOL and not message.name:
        yield Problem(f"{where}.name", "a tool message needs the name of its tool, e.g. functions.f")
    if message.role is Role.TOOL and message.recipient != Role.ASSISTANT:
        yield Problem(f"{where}.recipient", "a tool's result goes to assistant: set recipient to 'assistant'")
    special = next((name for name in SPECIAL_TOKENS if name in message.text), None)
    if special:
        yield Problem(
            f"{where}.content", f"contains {special} as text: it is encoded as ordinary text; was it meant as a token?"
        )


def _check_call(message: Message, where: str) -> Iterator[Problem]:
    if message.channel == FINAL:
        yield Problem(
            f"{where}.channel", "a tool call on final: calls go to commentary (functions) or analysis (built-in tools)"
        )
    if (
        str(message.recipient).startswith("functions.")
        and message.content_type in _JSON_TYPES
        and not is_json(message.text)
    ):
        yield Problem(f"{where}.content", "the arguments of a function call are not one JSON value")


def _check_order(messages: list[Message]) -> Iterator[Problem]:
    """What can be seen only in the order of messages."""
    if messages and messages[-1].role is not Role.ASSISTANT:
        yield Problem(
            f"messages[{len(messages) - 1}]",
            f"the last message is by {messages[-1].role.value}: nothing after it can be learned",
        )
    declared = _find_declared(messages)
    for i, message in enumerate(messages):
        name = message.recipient if message.role is Role.ASSISTANT else None
        if name is None:
            continue
        if name.startswith("functions.") and name not in declared:
            yield Problem(f"messages[{i}].recipient", f"calls {name}, which no developer message declares")
        following = messages[i + 1] if i + 1 < len(messages) else None
        if (
            following is not None
            and following.role is not Role.TOOL
            and not (following.role is Role.ASSISTANT and following.recipient)
        ):
            yield Problem(f"messages[{i}]", f"a call of {name} without a result: a tool message must follow")


def _find_declared(messages: list[Message]) -> set[str]:
    parts = [
        part for message in messages for part in message.content if isinstance(part, (SystemContent, DeveloperContent))
    ]
    spaces = [(key, space) for part in parts for key, space in (part.tools or {}).items()]
    return {f"{key}.{tool.name}" for key, space in spaces for tool in space.tools}


def _check_dropped(messages: list[Message], drop: Drop) -> Iterator[Problem]:
    for i, kept in enumerate(kept_messages(messages, drop)):
        if not kept and messages[i].channel == ANALYSIS:
            yield Problem(
                f"messages[{i}]",
                "chain of thought that the drop rule leaves out: it would not be trained (use drop none)",
            )


def checked_to_json(checked: Checked, line: int) -> str:
    """One line of JSON: problems, counts, and for each message the span of ids and where training begins."""
    rendering = checked.rendering
    spans = (
        []
        if rendering is None
        else [
            {"message": span.message, "start": span.start, "end": span.end, "trained_from": span.trained}
            for span in rendering.spans
        ]
    )
    problems = [{"where": problem.where, "what": problem.what} for problem in checked.problems]
    counts = {"tokens": 0 if rendering is None else len(rendering.ids), "trained": checked.trained}
    return json.dumps(
        {"line": line, "ok": not problems, "problems": problems, **counts, "spans": spans}, ensure_ascii=False
    )
