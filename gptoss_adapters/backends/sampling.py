"""From logits to a token: one sampler for every engine that gives logits, so that equal logits and seed give equal ids."""

from __future__ import annotations

import numpy as np

from gptoss_adapters.backends.protocol import BackendFailed, Request, Token


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


class Sampler:
    """Picks ids by a Request's temperature, filters and seed. The filters follow transformers' order: temperature, top-k,
    top-p (the smallest set that reaches it), min-p (relative to the best)."""

    def __init__(self, request: Request) -> None:
        self._request, self._random = request, np.random.default_rng(request.seed)

    def pick(self, logits: np.ndarray) -> int:
        """An id for logits [V]; -inf excludes. Greedy takes the lowest of equal ids. Raises BackendFailed for NaN."""
        if np.isnan(logits).any():
            raise BackendFailed("returned NaN logits")
        if self._request.temperature == 0:
            return int(logits.argmax())
        ids, p = self.distribution(logits)
        steps = np.cumsum(p)
        at = int(np.searchsorted(steps, self._random.random() * steps[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])

    def distribution(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids that temperature and filters leave, and their (not renormalised) probabilities."""
        r = self._request
        p = np.exp(log_softmax(logits.astype(np.float64) / r.temperature))
        ids = np.arange(len(p))
        if 0 < r.top_k < len(p):
            ids = np.argpartition(-p, r.top_k - 1)[: r.top_k]
        if r.top_p < 1:
            whole = p[ids].sum()
            # The ids below this bound weigh less, all together, than the tail that is cut off: they need no sorting.
            ids = ids[p[ids] >= (1 - r.top_p) * whole / len(ids)]
            ids = ids[np.lexsort((ids, -p[ids]))]
            ids = ids[: int(np.searchsorted(np.cumsum(p[ids]), r.top_p * whole)) + 1]
        if r.min_p:
            ids = ids[p[ids] >= r.min_p * p.max()]
        return ids, p[ids]

    def token(self, chosen: int, logits: np.ndarray) -> Token:
        """The Token for `chosen` with the log-probabilities that the request asks for."""
        if self._request.logprobs is None:
            return Token(chosen)
        own = float(log_softmax(logits)[chosen])
        if not self._request.logprobs:
            return Token(chosen, own)
        ids, values = top_logprobs(logits, self._request.logprobs)
        return Token(chosen, own, tuple((int(i), float(v)) for i, v in zip(ids, values, strict=True)))
