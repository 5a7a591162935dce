"""Benchmark of parsing against openai_harmony in the same process: token by token, in bulk, and as servers read it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import openai_harmony
from _harmony_render import cpu_time
from _harmony_texts import KINDS, texts
from gptoss_harmony import Parser, load_vocabulary, parse
from gptoss_harmony.tokens import CHANNEL, END, MESSAGE, RETURN, START
from helpers.harmony_oracle import oracle

TARGETS = {"streaming": 2.5, "bulk": 10.0, "messages each token": 50.0}
SIZES = {"streaming": (1_500, 12_000), "bulk": (1_500, 12_000), "messages each token": (12_000,)}
"""Tokens of a stream; half of it is analysis, half the final answer."""

Stream = list[int]


def stream(kind: str, size: int) -> Stream:
    encode = load_vocabulary().encode
    ids = [i for text in texts(kind, 40 + size // 20, 620) for i in encode(text)][: size - 10]
    assert len(ids) == size - 10
    half = len(ids) // 2
    role, analysis, final = encode("assistant"), encode("analysis"), encode("final")
    return [CHANNEL, *analysis, MESSAGE, *ids[:half], END, START, *role, CHANNEL, *final, MESSAGE, *ids[half:], RETURN]


def our_tokens(ids: Stream, strict: bool) -> None:
    parser = Parser("assistant", strict)
    feed = parser.feed
    for token in ids:
        feed((token,))
        _ = parser.last_content_delta, parser.current_channel, parser.current_recipient


def their_tokens(ids: Stream) -> None:
    parser = openai_harmony.StreamableParser(oracle(), openai_harmony.Role.ASSISTANT)
    process = parser.process
    for token in ids:
        process(token)
        _ = parser.last_content_delta, parser.current_channel, parser.current_recipient


def our_messages(ids: Stream) -> None:
    parser = Parser("assistant")
    for token in ids:
        parser.feed((token,))
        _ = parser.last_content_delta, parser.current_channel, parser.current_recipient, parser.messages


def their_messages(ids: Stream) -> None:
    parser = openai_harmony.StreamableParser(oracle(), openai_harmony.Role.ASSISTANT)
    for token in ids:
        parser.process(token)
        _ = parser.last_content_delta, parser.current_channel, parser.current_recipient, parser.messages


def their_bulk(ids: Stream) -> None:
    oracle().parse_messages_from_completion_tokens(ids, openai_harmony.Role.ASSISTANT)


WAYS: dict[str, tuple[str, Callable[[Stream], object], Callable[[Stream], object]]] = {
    "parse, streaming": ("streaming", lambda ids: our_tokens(ids, False), their_tokens),
    "parse, streaming, strict": ("streaming", lambda ids: our_tokens(ids, True), their_tokens),
    "parse, bulk": ("bulk", parse, their_bulk),
    "parse, bulk, strict": ("bulk", lambda ids: parse(ids, strict=True), their_bulk),
    "parse, .messages each token": ("messages each token", our_messages, their_messages),
}
"""Row -> (key of TARGETS and SIZES, ours, theirs)."""


def parse_rows(repeats: int) -> list[dict[str, Any]]:
    """One row per way and size, with a cell per kind of text. The ratio is the median of pairs measured one after
    the other.
    """
    rows = []
    for what, (key, ours, theirs) in WAYS.items():
        for size in SIZES[key]:
            cells = {
                kind: _cell(stream(kind, size), ours, theirs, 3 if key.startswith("messages") else repeats)
                for kind in KINDS
            }
            rows.append({"what": what, "tokens": size, "target": TARGETS[key], "cells": cells})
    return rows


def _cell(
    ids: Stream, ours: Callable[[Stream], object], theirs: Callable[[Stream], object], repeats: int
) -> dict[str, float]:
    ours(ids)  # vocabulary and deltas are loaded once per process, as the oracle's
    pairs = [(cpu_time(lambda: ours(ids), 8), cpu_time(lambda: theirs(ids), 1)) for _ in range(repeats)]
    ratio = median(theirs_seconds / our_seconds for our_seconds, theirs_seconds in pairs)
    return {
        "ratio": ratio,
        "seconds": median(pair[0] for pair in pairs),
        "openai_harmony_seconds": median(pair[1] for pair in pairs),
    }
