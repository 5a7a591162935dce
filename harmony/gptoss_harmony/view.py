"""Token ids as coloured text: what is a role, a channel, a special token, and where one token ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptoss_harmony.tokens import (
    CHANNEL,
    CONSTRAIN,
    FIRST_SPECIAL,
    LAST_SPECIAL,
    MESSAGE,
    SPECIAL_NAMES,
    START,
    is_special,
)
from gptoss_harmony.vocabulary import load_vocabulary

_SPECIAL = "1;35"
_ROLE = "1;34"
_CHANNEL = "1;32"
_TYPE = "36"
_UNKNOWN = "1;31"
_SHADES = ("48;5;236", "48;5;239")
_AFTER = {START: _ROLE, CHANNEL: _CHANNEL, CONSTRAIN: _TYPE}
_TRAINED = "4"


def show_tokens(ids: Sequence[int]) -> list[str]:
    """One text per id; the bytes of a character that spans tokens are shown in hexadecimal, like ⟨F0 9F⟩."""
    table = load_vocabulary().token_bytes
    return [_show_bytes(table[token]) if 0 <= token <= LAST_SPECIAL else f"⟨{token}?⟩" for token in ids]


_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = (
    {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
    | {0x7F: "␡"}
    | {code: f"⟨{code:02X}⟩" for code in (*range(0x80, 0xA0), *_BIDI)}
)


def printable(text: str) -> str:
    """`text` with control characters (but tab and line feed) and direction marks made visible.

    Model output must neither steer a terminal nor reorder its lines.
    """
    return text.translate(_SHOWN)


def _show_bytes(data: bytes) -> str:
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return f"⟨{data.hex(' ').upper()}⟩"


def colour_tokens(ids: Sequence[int], trained: Sequence[bool] = ()) -> str:
    """ANSI text: special tokens, roles, channels and types in colours, ordinary tokens on two alternating shades.

    `trained` (one bool per id, or nothing): tokens that the loss counts are underlined.
    """
    return "".join(_colour_pieces(ids, trained))


def _colour_pieces(ids: Sequence[int], trained: Sequence[bool]) -> Iterator[str]:
    style = ""
    for at, (token, text) in enumerate(zip(ids, show_tokens(ids), strict=True)):
        if is_special(token):
            style = _AFTER.get(token, "" if token == MESSAGE else style)
            codes = [_SPECIAL]
            text = SPECIAL_NAMES[token - FIRST_SPECIAL]
        else:
            codes = [_SHADES[at % 2], _UNKNOWN if token > LAST_SPECIAL else style]
        if trained and trained[at]:
            codes.append(_TRAINED)
        # A line feed inside a coloured span would colour the rest of the terminal's line.
        body = text.replace("\n", "\x1b[0m\n")
        yield f"\x1b[{';'.join(filter(None, codes))}m{body}\x1b[0m"
