"""One message as pieces: special ids and texts.

    <|start|> author [:name] [ to=recipient] [<|channel|> channel] [ content type] <|message|> part... end

Every text piece is encoded by itself, as ordinary text. So nothing that a user, a tool or a schema says can become a
control token, and ids do not depend on what stands in the next piece.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from gptoss_harmony.errors import RenderError
from gptoss_harmony.messages import DeveloperContent, Message, Role, SystemContent, Text
from gptoss_harmony.rendering.sections import part_text
from gptoss_harmony.tokens import (
    CALL,
    CHANNEL,
    COMMENTARY,
    CONSTRAIN,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    SPECIAL_NAMES,
    START,
)

Piece: TypeAlias = int | str
"""A special id, or a text to be encoded by itself."""

Form: TypeAlias = Literal["role", "channel"]
"""Where a header on commentary names its recipient: in the role's section, as openai-harmony 0.0.8 writes it, or in the
channel's, as its fork oss-harmony 0.0.11 does, which puts ``<|constrain|>`` before every content type besides. gpt-oss
itself writes its calls with the recipient in the channel's section."""

_CONSTRAIN_TEXT = SPECIAL_NAMES[CONSTRAIN - FIRST_SPECIAL]


def message_pieces(message: Message, functions: bool = False, form: Form = "channel") -> list[Piece]:
    """The whole message; `functions`: the conversation declares function tools. Raises RenderError."""
    return [*header_pieces(message, form), *content_texts(message, functions), end_token(message)]


def header_pieces(message: Message, form: Form = "channel") -> list[Piece]:
    """From ``<|start|>`` to ``<|message|>``. Raises RenderError for a tool message without a name."""
    pieces = [START, *author_pieces(message)]
    recipient = []
    if message.recipient is not None and message.recipient != "all":
        recipient.append(f" to={message.recipient}")
    in_channel = form == "channel" and message.channel == COMMENTARY
    if not in_channel:
        pieces += recipient
    if message.channel is not None:
        pieces += CHANNEL, message.channel
    if in_channel:
        pieces += recipient
    if message.content_type is not None:
        pieces += _content_type_pieces(message.content_type, form)
    pieces.append(MESSAGE)
    return pieces


def author_pieces(message: Message) -> list[Piece]:
    """The role, or a tool's name alone; what a prompt gives and the model does not write."""
    if message.role == Role.TOOL:
        if message.name is None:
            raise RenderError("Tools should have a name!", code="tool_without_name")
        return [message.name]
    role = Role(message.role).value
    return [role] if message.name is None else [role, f":{message.name}"]


def content_texts(message: Message, functions: bool) -> list[str]:
    """The text of each part. Raises RenderError for system or developer content in another role's message."""
    for part in message.content:
        if not isinstance(part, Text):
            _check_place(part, message.role)
    return [part_text(part, functions) for part in message.content]


def _check_place(part: SystemContent | DeveloperContent, role: Role) -> None:
    kind, only = (
        ("SystemContent", Role.SYSTEM) if isinstance(part, SystemContent) else ("DeveloperContent", Role.DEVELOPER)
    )
    if role != only:
        found = Role(role).value.capitalize()
        raise RenderError(f"{kind} may only appear in {only.value} messages, found in {found}", "misplaced_content")


def end_token(message: Message) -> int:
    """An assistant message with any recipient (even ``all`` or an empty one) ends as a call."""
    return CALL if message.role == Role.ASSISTANT and message.recipient is not None else END


def _content_type_pieces(content_type: str, form: Form) -> list[Piece]:
    if form == "channel":
        content_type = _CONSTRAIN_TEXT + content_type.removeprefix(_CONSTRAIN_TEXT)
    if not content_type.startswith(_CONSTRAIN_TEXT):
        return [f" {content_type}"]
    rest = content_type.removeprefix(_CONSTRAIN_TEXT)
    return [" ", CONSTRAIN, rest] if rest else [" ", CONSTRAIN]
