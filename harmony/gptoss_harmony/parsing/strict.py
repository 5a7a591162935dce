"""The parser of openai-harmony 0.0.8: its headers, its actions, its errors (`strict=True` and `strict="lax"`).

Compared attribute by attribute after every token; what differs is two wordings. It quotes the words of
extra_header_words in Rust's debug format, which escapes quotes and combining marks; for undecodable_header it quotes
its decoder.
"""

from __future__ import annotations

import re

from gptoss_harmony.errors import ParseError
from gptoss_harmony.messages import Message, Role
from gptoss_harmony.parsing.events import Header
from gptoss_harmony.parsing.machine import (
    KINDS,
    STOP_REASONS,
    Action,
    Input,
    InputKind,
    Machine,
    ParsingMode,
    State,
)
from gptoss_harmony.parsing.token_text import join_bytes, token_bytes
from gptoss_harmony.parsing.utf8 import REPLACEMENT, StrictUtf8Decoder
from gptoss_harmony.tokens import CHANNEL, CONSTRAIN, FIRST_SPECIAL, SPECIAL_NAMES, START

CHANNEL_MARK = SPECIAL_NAMES[CHANNEL - FIRST_SPECIAL]
CONSTRAIN_MARK = SPECIAL_NAMES[CONSTRAIN - FIRST_SPECIAL]
ROLES = frozenset(role.value for role in Role)
_SEPARATORS = re.compile(r"[ \t\n\f\r]+")
# White_Space of Unicode: `str.isspace` also takes U+001C to U+001F, which must not count.
_WHITE = "".join(
    chr(c)
    for c in (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
)
_CHANNEL_VALUE = re.compile(rf"[^<{_WHITE}]*")


def read_strict_header(text: str, given: Role | None) -> Header:
    """The header in `text`; `given` is the role that the caller knows, None if the header must say it.

    Raises ParseError (codes empty_channel, missing_role, unknown_role, extra_header_words).
    """
    channel, words = _split_channel(text)
    role, name = (given, None) if given else _read_role(words)
    if words and words[0] == (role.value if name is None else name):
        del words[0]
    recipient = content_type = None
    if words and words[-1].startswith("to="):
        recipient = words.pop()[3:]
    elif len(words) == 1:
        recipient = words.pop()
    elif words:
        content_type = words.pop()
        recipient = words.pop().removeprefix("to=")
    if words:
        raise ParseError(
            f'unexpected tokens remaining in message header: Some("{" ".join(words)}")', "extra_header_words"
        )
    return Header(role, name, channel, recipient, content_type)


def read_lax_headless(text: str, given: Role) -> tuple[Header, str]:
    """A message without ``<|message|>`` as `strict=False` of 0.0.8 reads it: header and content, whitespace
    collapsed.
    """
    channel, words = _split_channel(text)
    if words and words[0] == given.value:
        del words[0]
    return Header(given, None, channel), " ".join(words)


def _split_channel(text: str) -> tuple[str | None, list[str]]:
    """Channel, and the words that are left without it."""
    channel = None
    head, mark, tail = text.partition(CHANNEL_MARK)
    if mark:
        channel = _CHANNEL_VALUE.match(tail)[0]  # type: ignore[index]
        if not channel:
            raise ParseError("channel marker present but no channel value found in header", "empty_channel")
        text = head + tail[len(channel) :]
    text = text.strip(_WHITE)
    if CONSTRAIN_MARK in text:
        text = text.replace(CONSTRAIN_MARK, " " + CONSTRAIN_MARK).strip(_WHITE)
    return channel, [word for word in _SEPARATORS.split(text) if word]


def _read_role(words: list[str]) -> tuple[Role, str | None]:
    """Role and tool name from the first word, which stays: the caller drops it if it equals the role's word."""
    if not words:
        raise ParseError("message header did not contain a role", "missing_role")
    word = words[0]
    if word in ROLES and word != Role.TOOL:
        return Role(word), None
    if word not in ROLES and len(words) == 1 and not word.startswith("to="):
        raise ParseError(f"Unknown role: {word}", "unknown_role")
    return Role.TOOL, word


def _decode_header(machine: Machine) -> str:
    try:
        return b"".join(
            [piece.encode() if isinstance(piece, str) else token_bytes()[piece] for piece in machine.header]
        ).decode()
    except (IndexError, UnicodeError):
        raise ParseError("could not decode header", "undecodable_header") from None


def _begin(machine: Machine, received: Input) -> None:
    machine.begin()


def _open(machine: Machine, received: Input) -> None:
    try:
        header = read_strict_header(_decode_header(machine), machine.next_role)
    except ParseError:
        machine.expect_start()  # the given role stays in force
        raise
    machine.open(header)


def _append(machine: Machine, received: Input) -> None:
    """Content. A delta has at most one U+FFFD per token, so a run with broken UTF-8 goes token by token."""
    if isinstance(received, str):
        machine.append_text(received)
    elif isinstance(received, int):
        machine.append(token_bytes()[received])
    elif received and not (machine.decoder.clean and _append_if_clean(machine, received)):
        for token in received:
            machine.append_token(token)


def _append_if_clean(machine: Machine, run: list[int]) -> bool:
    texts = machine.decoder.decode(join_bytes(run))
    if REPLACEMENT in texts:  # as a piece of its own: something is broken
        machine.decoder.pending = b""
        return False
    machine.emit_pieces(texts)
    return True


def _poison(machine: Machine, received: Input) -> None:
    assert isinstance(machine.decoder, StrictUtf8Decoder)
    machine.decoder.poisoned = True
    machine.append(b"")


def _close(machine: Machine, received: Input) -> None:
    assert not isinstance(received, (list, str))
    machine.close(received, STOP_REASONS[received], _flag_nothing)


def _flag_nothing(message: Message, reason: str) -> list[str]:
    return []


def _close_headless(machine: Machine, received: Input) -> None:
    """`strict=False` of 0.0.8, a stop token in a header: a message if the role was given, else the text is lost."""
    if machine.next_role is None or not machine.header:
        machine.next_role = None
        machine.expect_start()
        return
    header, content = read_lax_headless(_decode_header(machine), machine.next_role)
    machine.formed = False
    machine.open(header)
    machine.emit(content)
    _close(machine, received)


def _fail_expecting_start(machine: Machine, received: Input) -> None:
    token = received[0] if isinstance(received, (list, str)) else received
    raise ParseError(f"Unexpected token {token} while expecting start token {START}", "expected_start")


def _fail_in_header(machine: Machine, received: Input) -> None:
    raise ParseError("Unexpected EOS while waiting for message header to complete", "eos_in_header")


def _do_nothing(machine: Machine, received: Input) -> None:
    pass


STRICT: dict[State, dict[InputKind, Action]] = {
    State.EXPECT_START: {
        **dict.fromkeys(InputKind, _fail_expecting_start),
        InputKind.START: _begin,
        InputKind.EOS: _do_nothing,
    },
    State.HEADER: {
        **dict.fromkeys(InputKind, Machine.collect),
        InputKind.MESSAGE: _open,
        InputKind.EOS: _fail_in_header,
    },
    State.CONTENT: {
        **dict.fromkeys(InputKind, _append),
        InputKind.STOP: _close,
        InputKind.EOS: _close,
        InputKind.UNKNOWN: _poison,
    },
}
LAX = {**STRICT, State.HEADER: {**STRICT[State.HEADER], InputKind.STOP: _close_headless}}

STRICT_MODE = ParsingMode(KINDS, STRICT, StrictUtf8Decoder)
LAX_MODE = ParsingMode(KINDS, LAX, StrictUtf8Decoder)
