"""Model outputs to parse: the gold streams, and ids of an output written as text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from gptoss_harmony import Message, load_vocabulary
from gptoss_harmony.tokens import SPECIAL_TOKENS

DATA = Path(__file__).parents[1] / "data" / "harmony"


def ids_of(text: str) -> list[int]:
    """Ids of a model output written with the names of its control tokens."""
    out: list[int] = []
    while text:
        name = next((name for name in SPECIAL_TOKENS if text.startswith(name)), None)
        cut = (
            len(name) if name else min((i for i in range(1, len(text)) if text.startswith("<|", i)), default=len(text))
        )
        out += [SPECIAL_TOKENS[name]] if name else load_vocabulary().encode(text[:cut])
        text = text[cut:]
    return out


def gold_cases() -> list[dict[str, Any]]:
    random = gzip.decompress((DATA / "parse_cases.jsonl.gz").read_bytes()).decode().splitlines()
    fixed = (DATA / "fixed_parse_cases.jsonl").read_text().splitlines()
    return [json.loads(line) for line in random + fixed]


def fields_of(message: Message) -> tuple[Any, ...]:
    """(channel, recipient, content type, text, flags)."""
    return message.channel, message.recipient, message.content_type, message.text, list(message.flags)
