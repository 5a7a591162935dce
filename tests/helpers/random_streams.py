"""Random token streams: well-formed ones, the same with mistakes, and pure noise. For tests and
bench/fuzz_harmony.py.
"""

from __future__ import annotations

from functools import cache
from random import Random

from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    LAST_SPECIAL,
    MESSAGE,
    N_RANKS,
    RETURN,
    START,
    STARTOFTEXT,
)

ROLES = (
    "assistant",
    "assistant",
    "user",
    "tool",
    "system",
    "developer",
    "bash",
    "functions.f",
    "user:bob",
    "assistantassistant",
    "to=functions.f",
)
CHANNELS = (
    "analysis",
    "commentary",
    "final",
    "final",
    "comment",
    "commentary?",
    "––commentary",
    "??",
    "analysisassistant",
    "",
)
RECIPIENTS = (
    " to=functions.f",
    " to=assistant",
    " to=",
    " to=python",
    " functions.f",
    " to= functions.f",
    " to=functions f",
    "to=x",
    " to=all",
)
TYPES = (" json", " code", "json", " x y", " text/plain; charset=utf-8", " ", "\n", "\xa0", "\x0b", "\x1c")
WORDS = (
    "Hello",
    " world",
    " I must refuse",
    '{"a":1}',
    "{}{}",
    "assistantfinal",
    "analysis",
    "\n\n",
    " ",
    "日本語",
    " नमस्ते",
    " 👩\u200d👧🏽",
    "é",
    "\ufffd",
    "<|end|>",
    "<",
)
CONTROLS = (START, END, MESSAGE, CHANNEL, CONSTRAIN, CALL, RETURN)
ODD = (STARTOFTEXT, ENDOFTEXT, LAST_SPECIAL, LAST_SPECIAL + 1, 2**32 - 1, 200_018)


@cache
def encoded(text: str) -> tuple[int, ...]:
    return tuple(load_vocabulary().encode(text))


@cache
def broken_tokens() -> tuple[int, ...]:
    """Tokens that are not whole characters."""
    return tuple(
        i
        for i, data in enumerate(load_vocabulary().token_bytes[:N_RANKS])
        if "\ufffd" in data.decode("utf-8", "replace")
    )


def content(rng: Random, longest: int = 8) -> list[int]:
    ids: list[int] = []
    for _ in range(rng.randrange(longest)):
        kind = rng.random()
        if kind < 0.6:
            ids += encoded(rng.choice(WORDS))
        else:
            ids.append(rng.choice(broken_tokens()) if kind < 0.85 else rng.randrange(N_RANKS))
    return ids


def header(rng: Random) -> list[int]:
    """After the role: recipient, channel and content type, mostly in places where a model puts them."""
    ids: list[int] = []
    if rng.random() < 0.3:
        ids += encoded(rng.choice(RECIPIENTS))
    if rng.random() < 0.85:
        ids += [CHANNEL, *encoded(rng.choice(CHANNELS))]
    if rng.random() < 0.3:
        ids += encoded(rng.choice(RECIPIENTS))
    if rng.random() < 0.2:
        ids += [
            *encoded(rng.choice((" ", ""))),
            CONSTRAIN,
            *encoded(rng.choice(("json", " json", "", "functions.f", "write: edit"))),
        ]
    elif rng.random() < 0.2:
        ids += encoded(rng.choice(TYPES))
    return ids


def message(rng: Random) -> list[int]:
    return [*header(rng), MESSAGE, *content(rng), rng.choice((END, END, CALL, RETURN))]


def stream(rng: Random, given: bool) -> list[int]:
    """Messages, then mistakes: ids dropped, doubled, moved, replaced or put in, and the end cut off."""
    ids = message(rng) if given else []
    for _ in range(rng.randrange(1, 4)):
        ids += [START, *encoded(rng.choice(ROLES)), *message(rng)]
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        if not ids:
            break
        at, how = rng.randrange(len(ids)), rng.randrange(5)
        if how == 0:
            del ids[at]
        elif how == 1:
            ids.insert(at, ids[at])
        elif how == 2:
            ids.insert(at, ids.pop(rng.randrange(len(ids))))
        elif how == 3:
            ids[at] = rng.choice((*CONTROLS, *ODD))
        else:
            ids[at:at] = content(rng, 3) or [rng.choice(CONTROLS)]
    return ids[: rng.randrange(len(ids) + 1)] if rng.random() < 0.3 else ids


def noise(rng: Random) -> list[int]:
    """No order at all: half of it special tokens and header words."""
    out: list[int] = []
    for _ in range(rng.randrange(24)):
        kind = rng.random()
        if kind < 0.35:
            out.append(rng.choice(CONTROLS))
        elif kind < 0.4:
            out.append(rng.choice(ODD))
        elif kind < 0.6:
            out += encoded(rng.choice((*ROLES, *CHANNELS, *RECIPIENTS, *TYPES)))
        else:
            out += content(rng, 3)
    return out


def any_stream(rng: Random) -> tuple[str | None, list[int]]:
    """A role for the parser and a stream, two thirds of them nearly well-formed."""
    role = rng.choice((None, "assistant", "assistant", "user", "tool"))
    return role, noise(rng) if rng.random() < 0.33 else stream(rng, role is not None)
