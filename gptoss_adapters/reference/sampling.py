"""From logits to a token: one sampler for the reference and for every engine that gives logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gptoss_adapters.errors import UsageError


class Filters(Protocol):
    """What `Sampling` and a backend's Request have in common."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy; the filters apply in the order top_k, top_p, min_p.

    top_k: keep the k most likely (0: all). top_p: keep the smallest set with this probability. min_p: keep what is at
    least this fraction of the most likely one's probability. seed: same seed, same draws, for the same batch.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, ok in (
            ("temperature", self.temperature >= 0),
            ("top_k", self.top_k >= 0),
            ("top_p", 0 < self.top_p <= 1),
            ("min_p", 0 <= self.min_p <= 1),
        ):
            if not ok:
                raise UsageError(f"{name} is out of range", got=getattr(self, name))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities over the last axis, summed in float64; returns float64 of the same shape."""
    x: np.ndarray = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


def top_logprobs(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most probable ids int32 [..., k], best first, and their log-probabilities float32 [..., k]."""
    k = min(k, logits.shape[-1])
    logprobs = log_softmax(logits)
    ids = np.argpartition(-logprobs, k - 1, axis=-1)[..., :k]
    values = np.take_along_axis(logprobs, ids, axis=-1)
    order = np.lexsort((ids, -values), axis=-1)  # equal values: the lower id first
    ids, values = np.take_along_axis(ids, order, axis=-1), np.take_along_axis(values, order, axis=-1)
    return ids.astype(np.int32), values.astype(np.float32)


def distribution(logits: np.ndarray, how: Filters) -> tuple[np.ndarray, np.ndarray]:
    """logits [V] -> the ids that temperature (above 0) and filters leave, and their (not renormalised) probabilities.

    The filters follow transformers' order: temperature, top-k, top-p (the smallest set that reaches it), min-p
    (relative to the best).
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()  # so that a tiny temperature does not overflow
    with np.errstate(over="ignore"):
        p = np.exp(log_softmax(shifted / how.temperature))
    ids = np.arange(len(p))
    if 0 < how.top_k < len(p):
        ids = np.argpartition(-p, how.top_k - 1)[: how.top_k]
    if how.top_p < 1:
        whole = p[ids].sum()
        # The ids below this bound weigh less, all together, than the tail that is cut off: they need no sorting.
        ids = ids[p[ids] >= (1 - how.top_p) * whole / len(ids)]
        ids = ids[np.lexsort((ids, -p[ids]))]
        ids = ids[: int(np.searchsorted(np.cumsum(p[ids]), how.top_p * whole)) + 1]
    if how.min_p:
        ids = ids[p[ids] >= how.min_p * p.max()]
    return ids, p[ids]


def draw(logits: np.ndarray, how: Filters, random: np.random.Generator) -> int:
    """An id for logits [V]; -inf excludes. Temperature 0 takes the lowest of equal best ids. Equal logits and seed
    give equal ids.
    """
    if how.temperature == 0:
        return int(logits.argmax())
    ids, p = distribution(logits, how)
    steps = np.cumsum(p)
    at = int(np.searchsorted(steps, random.random() * steps[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])
