"""Answers that call tools, made from a seed, and what an API may show of each when it is cut after any token."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from random import Random
from typing import Any

from gptoss_harmony import load_vocabulary
from gptoss_harmony.tokens import SPECIAL_TOKENS

NAMES = ("get", "get_weather", "get_weather_tomorrow", "search-web", "a.b", "to", "json_get", "final_report")
"""Names that begin one another, or look like words of a header."""

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in NAMES
]
_WORDS = ("Let", "me", "look", "at", "the", "weather", "in", "Zürich", "日本", "🙂", "{", "1.", "\n\n", "ok.")


@dataclass(frozen=True)
class Part:
    """One message: its kind (reasoning, content or call), the ids before its content, its content, the closing id."""

    kind: str
    name: str
    header: list[int]
    body: list[int]
    end: int

    def __len__(self) -> int:
        return len(self.header) + len(self.body) + 1


def to_ids(text: str) -> list[int]:
    """Ids of a text in which the names of special tokens are special."""
    pieces = re.split(r"(<\|[a-z_]+\|>)", text)
    encode = load_vocabulary().encode
    return [i for piece in pieces for i in ([SPECIAL_TOKENS[piece]] if piece in SPECIAL_TOKENS else encode(piece))]


def make_answer(rng: Random) -> list[Part]:
    """Reasoning, perhaps a preamble, one or two calls, perhaps a last word. Every header has a ``<|message|>``."""
    kinds = ["reasoning"] * rng.randrange(3) + ["content"] * (rng.random() < 0.3) + ["call"] * rng.choice((1, 1, 2))
    return [_make_part(kind, i, rng) for i, kind in enumerate(kinds + ["final"] * (rng.random() < 0.2))]


def _make_part(kind: str, at: int, rng: Random) -> Part:
    start = "<|start|>assistant" if at else ""
    if kind == "call":
        name = rng.choice(NAMES)
        arguments = json.dumps({rng.choice(_WORDS): _make_text(rng) for _ in range(rng.randrange(3))})
        head = rng.choice(
            (
                f" to=functions.{name}<|channel|>commentary",
                f"<|channel|>commentary to=functions.{name}",
                f"<|channel|>analysis to=functions.{name}",
                f" to=functions.{name}<|channel|>analysis",
            )
        )
        head += rng.choice(("", " json", " code", " <|constrain|>json", "<|constrain|>json"))
        return Part(kind, name, to_ids(f"{start}{head}<|message|>"), to_ids(arguments), SPECIAL_TOKENS["<|call|>"])
    channel = {"reasoning": "analysis", "content": "commentary"}.get(kind, "final")
    end = "<|return|>" if kind == "final" else "<|end|>"
    body = to_ids(_make_text(rng))
    shown = "reasoning" if kind == "reasoning" else "content"
    return Part(shown, "", to_ids(f"{start}<|channel|>{channel}<|message|>"), body, SPECIAL_TOKENS[end])


def _make_text(rng: Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(1, 8)))


def show_cut(parts: list[Part], cut: int) -> tuple[str | None, str | None, list[tuple[str, str]]]:
    """(reasoning, content, calls) of the first `cut` tokens: nothing of a message before its ``<|message|>``."""
    texts: dict[str, list[str]] = {"reasoning": [], "content": []}
    calls = []
    for part in parts:
        written = part.body[: max(0, cut - len(part.header))]
        text = load_vocabulary().decode(written)
        if cut >= len(part.header):
            if part.kind == "call":
                calls.append((part.name, text))
            elif text:
                texts[part.kind].append(text)
        cut -= len(part)
        if cut <= 0:
            break
    reasoning, content = ("\n".join(texts[kind]) or None for kind in ("reasoning", "content"))
    return reasoning, content, calls


def check_seen(
    parts: list[Part], cut: int, reasoning: str | None, content: str | None, calls: list[tuple[str, str]]
) -> None:
    """What a stream has told after `cut` tokens is the beginning of what these may show; names come whole."""
    may_reason, may_say, may_call = show_cut(parts, cut)
    assert (may_reason or "").startswith(reasoning or ""), (cut, reasoning)
    assert (may_say or "").startswith(content or ""), (cut, content)
    assert len(calls) <= len(may_call), (cut, calls)
    for (name, arguments), (real, whole) in zip(calls, may_call, strict=False):
        assert name == real and whole.startswith(arguments), (cut, calls)


def ids_of_parts(parts: list[Part]) -> list[int]:
    return [i for part in parts for i in (*part.header, *part.body, part.end)]
