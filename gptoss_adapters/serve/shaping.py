"""Penalties and biases of a request, as far as the engine takes them."""

from __future__ import annotations

import re
from typing import Any

from gptoss_adapters.backends.protocol import Info
from gptoss_adapters.serve.arguments import Note
from gptoss_adapters.serve.errors import Json, bad_request

_PENALTIES = {
    "presence_penalty": ("presence_penalty", 0),
    "frequency_penalty": ("frequency_penalty", 0),
    "repetition_penalty": ("repetition_penalty", 1),
    "repeat_penalty": ("repetition_penalty", 1),  # llama.cpp's and Ollama's name
}
"""A request's argument: the backend's name for it, and the value that asks for nothing."""
_ID = re.compile(r"\d{1,9}", re.ASCII)


def shape_sampling(body: Any, info: Info, held: bool) -> tuple[Json, list[Note]]:
    """Keyword arguments of `Backend.stream`, and what of the request the engine does not do. held: by a grammar.
    Raises ApiError for a bias of something that is no token.
    """
    settings: Json = {}
    notes: list[Note] = []
    known = info.capabilities.penalties
    for name, (meant, neutral) in _PENALTIES.items():
        value = getattr(body, name, None)
        if value is None or value == neutral:
            continue
        if known == "none":
            notes.append(Note(name, f"the engine {info.engine} has no such penalty, so none is applied"))
        elif known == "free" and held:
            words = f"the engine {info.engine} applies none while a schema or tool_choice holds its answer"
            notes.append(Note(name, words))
        else:
            settings.setdefault(meant, float(value))
    bias = getattr(body, "logit_bias", None)
    if bias:
        pairs = _read_bias(bias, info)
        if info.capabilities.logit_bias:
            settings["logit_bias"] = pairs
        else:
            notes.append(Note("logit_bias", f"the engine {info.engine} takes no bias, so none is applied"))
    return settings, notes


def _read_bias(bias: dict[str, float], info: Info) -> list[tuple[int, float]]:
    for key in bias:
        if not _ID.fullmatch(key) or int(key) >= info.vocab_size:
            raise bad_request(
                f"logit_bias: the keys are ids of tokens (expected 0..{info.vocab_size - 1} / got {key[:100]!r})",
                "logit_bias",
            )
    return [(int(key), float(value)) for key, value in bias.items()]
