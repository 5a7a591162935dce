"""The PARAMETERs that Ollama knows, and which texts it takes as their values.

The texts are those of Go's strconv: ParseInt of 64 bits, ParseFloat of 32, ParseBool. Source of names and types: the
fields of Ollama's Options.
"""

from __future__ import annotations

import re
from math import isfinite

import numpy as np

TYPES: dict[str, type] = {
    **dict.fromkeys(
        [
            "num_ctx",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "num_thread",
            "draft_num_predict",
            "num_keep",
            "seed",
            "num_predict",
            "top_k",
            "repeat_last_n",
        ],
        int,
    ),
    **dict.fromkeys(
        ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"], float
    ),
    "use_mmap": bool,
    "stop": str,
}
DEPRECATED = frozenset(
    {
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
    }
)
RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "num_ctx": (1, 2**31 - 1),
    "top_k": (0, 2**31 - 1),
}
_BOOLS = frozenset({"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"})
_INT = re.compile(r"[+-]?[0-9]+")
_DIGITS = "[0-9](?:_?[0-9])*"
_FLOAT = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?[0-9]+)?")
_HEX = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+")
_NO_NUMBER = re.compile(r"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)


def explain_misfit(key: str, value: str) -> str | None:
    """Why Ollama refuses the value, or why it makes no sense; None when it is right."""
    kind = TYPES[key]
    if kind is bool:
        return None if value in _BOOLS else "takes true or false"
    if kind is str:
        return None
    number = _parse_int(value) if kind is int else _parse_float(value)
    if isinstance(number, str):
        return number
    low, high = RANGES.get(key, (float("-inf"), float("inf")))
    return None if low <= number <= high else f"must lie in {low:g}..{high:g}"


def _parse_int(text: str) -> int | str:
    """The number, or what is wrong with the text."""
    if not _INT.fullmatch(text):
        return "takes a whole number"
    digits = text.lstrip("+-").lstrip("0")
    number = int(text) if len(digits) <= 19 else 2**63
    return number if -(2**63) <= number < 2**63 else "takes a whole number of 64 bits"


def _parse_float(text: str) -> float | str:
    """The same for a number of 32 bits; Ollama cannot send infinities and NaN to its engine."""
    if _NO_NUMBER.fullmatch(text):
        return "takes a finite number"
    if _HEX.fullmatch(text):
        number = _parse_hex(text)
    elif _FLOAT.fullmatch(text):
        number = float(text)
    else:
        return "takes a number"
    with np.errstate(over="ignore"):
        return number if isfinite(np.float32(number)) else "takes a number of 32 bits"


def _parse_hex(text: str) -> float:
    try:
        return float.fromhex(text)
    except OverflowError:
        return float("inf")
