"""Changed copies of the reference: what faults and nulls are made of. Weights are shared with the original, which
stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptoss_adapters.reference.cache import Cache
from gptoss_adapters.reference.experts import OracleExperts
from gptoss_adapters.reference.model import Attention, Block, GptOss, MoE
from gptoss_adapters.reference.taps import Taps


def clone(model: GptOss, dtype: torch.dtype | None = None) -> GptOss:
    """A copy whose every part may be changed; tensors are shared, so replace them and never write into them."""
    made = copy.copy(model)
    made.dtype = dtype or model.dtype
    made.layers = [Block(_copy(attention), _copy(moe)) for attention, moe in model.layers]
    for _, moe in made.layers:
        moe.experts = copy.copy(moe.experts)
        if isinstance(moe.experts, OracleExperts):
            moe.experts.dtype = made.dtype
            moe.experts.weights, moe.experts.biases = dict(moe.experts.weights), dict(moe.experts.biases)
    return made


def _copy(part: Any) -> Any:
    made = copy.copy(part)
    made.w = dict(part.w)
    return made


def attentions(model: GptOss) -> Iterator[Attention]:
    return (attention for attention, _ in model.layers)


def moes(model: GptOss) -> Iterator[MoE]:
    return (moe for _, moe in model.layers)


def experts(model: GptOss) -> Iterator[OracleExperts]:
    for moe in moes(model):
        assert isinstance(moe.experts, OracleExperts), "faults and nulls are made of the oracle's experts"
        yield moe.experts


def set_config(model: GptOss, **fields: Any) -> None:
    """Other hyperparameters for everything that reads them while it computes (not: shapes, RoPE, windows)."""
    model.config = replace(model.config, **fields)
    parts: list[Any] = [*attentions(model), *moes(model), *experts(model)]
    for part in parts:
        part.config = replace(part.config, **fields)


def by_length(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts of one length, which make a batch."""
    lengths: dict[int, list[int]] = {}
    for i, p in enumerate(prompts):
        lengths.setdefault(len(p), []).append(i)
    yield from lengths.values()


def change_ops(part: Any, **operations: Any) -> None:
    """Let one piece of a copy, or its head, compute with other operations (see `Ops`)."""
    part.ops = replace(part.ops, **operations)


def logits(
    model: GptOss,
    prompt: Sequence[int],
    rows: Tensor | None = None,
    forced: Sequence[Tensor] | None = None,
    taps: Taps | None = None,
    cache: list[Cache] | None = None,
) -> Tensor:
    """[T, V], or of the vocabulary `rows` alone [T, n], in the model's dtype."""
    return logits_batch(model, torch.tensor([list(prompt)]), rows, forced, taps, cache)[0]


@torch.inference_mode()
def logits_batch(
    model: GptOss,
    ids: Tensor,
    rows: Tensor | None = None,
    forced: Sequence[Tensor] | None = None,
    taps: Taps | None = None,
    cache: list[Cache] | None = None,
) -> Tensor:
    """ids [B, T] -> [B, T, V or n]; see `logits`."""
    if forced is not None:
        taps = taps or Taps()
        taps.forced = forced
    if rows is None:
        return model(ids, taps=taps, cache=cache)
    x = model.hidden(ids, taps=taps, cache=cache)
    return model.head(x, rows)
