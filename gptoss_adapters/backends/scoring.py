"""How probable the tokens of a prompt are, each after those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

_ROWS = 16  # positions at once: their float64 probabilities take 26 MB at the real vocabulary


class PromptLogprobs(NamedTuple):
    """Of the tokens 1..T-1 of a prompt: natural logs of probabilities under the raw logits, one row for a token.

    own float32 [T-1]: the token's own. ranks int32 [T-1]: its place, 1 for the most probable, 0 where the engine does
    not say. ids int32 [T-1, k], best first, and best float32 [T-1, k]: the most probable ones; where the token is among
    them, its own value is that one.
    """

    own: np.ndarray
    ranks: np.ndarray
    ids: np.ndarray
    best: np.ndarray

    @classmethod
    def join(cls, parts: Iterable[PromptLogprobs]) -> PromptLogprobs:
        """The rows of all parts; there must be one at least."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def score_blocks(
    blocks: Iterable[np.ndarray], tokens: Sequence[int], k: int, cancelled: Callable[[], bool]
) -> PromptLogprobs:
    """From the logits of a prompt's positions, as `Engine.rows` gives them; ends early when cancelled."""
    parts = [_score(np.zeros((0, k), np.float32), [], k)]
    wanted = list(tokens[1:])
    for block in blocks:
        for at in range(0, len(block), _ROWS):
            rows = block[at : at + _ROWS][: len(wanted)]
            parts.append(_score(rows, wanted[: len(rows)], k))
            del wanted[: len(rows)]
        if cancelled():
            break
    return PromptLogprobs.join(parts)


def _score(logits: np.ndarray, tokens: Sequence[int], k: int) -> PromptLogprobs:
    """logits [N, V]: row i predicts tokens[i]. A row's log-sum is all that float64 is needed for."""
    n = len(logits)
    k = min(k, logits.shape[1])
    wanted = np.asarray(tokens, np.int64).reshape(n, 1)
    highest = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits.astype(np.float64) - highest).sum(axis=1, keepdims=True)
    total = highest + np.log(sums)
    own = np.take_along_axis(logits, wanted, axis=1)
    lower = np.arange(logits.shape[1]) < wanted  # equal values: the lower id first
    ranks = 1 + (logits > own).sum(axis=1) + ((logits == own) & lower).sum(axis=1)
    ids = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(logits, ids, axis=1)
    order = np.lexsort((ids, -values), axis=-1)
    ids = np.take_along_axis(ids, order, axis=1)
    best = np.take_along_axis(values, order, axis=1) - total
    return PromptLogprobs(
        (own - total)[:, 0].astype(np.float32), ranks.astype(np.int32), ids.astype(np.int32), best.astype(np.float32)
    )
