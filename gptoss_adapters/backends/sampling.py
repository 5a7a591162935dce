"""A Request's draws, and the tokens that answer it."""

from __future__ import annotations

import numpy as np
from gptoss_harmony.grammars.headers import HeaderGuard

from gptoss_adapters.backends.protocol import BackendFailed, Request, Token
from gptoss_adapters.reference.sampling import draw, log_softmax, top_logprobs


class Sampler:
    """Picks ids by a Request's headers, biases, penalties, temperature, filters and seed."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._random = np.random.default_rng(request.seed)
        self._guard = HeaderGuard(request.headers) if request.headers else None
        self._shape = _Shape(request) if request.penalised or request.logit_bias else None

    def pick(self, logits: np.ndarray) -> int:
        """An id for logits [V], see `draw`; -inf excludes, whatever the biases. Raises BackendFailed for NaN."""
        if np.isnan(logits).any():
            raise BackendFailed("returned NaN logits")
        chosen = self._draw(logits)
        if self._guard and not self._guard.allows(chosen):
            allowed = [token for token in self._guard.list_allowed() if token < len(logits)]
            held = np.full_like(logits, -np.inf)
            held[allowed] = logits[allowed]
            chosen = self._draw(held)
        return chosen

    def _draw(self, logits: np.ndarray) -> int:
        return draw(self._shape.apply(logits) if self._shape else logits, self._request, self._random)

    def token(self, chosen: int, logits: np.ndarray) -> Token:
        """The Token for `chosen`, which is then part of the answer that the penalties count, with the log-probabilities
        that the request asks for.
        """
        if self._shape:
            self._shape.count(chosen)
        if self._guard:
            self._guard.accept(chosen)
        if self._request.logprobs is None:
            return Token(chosen)
        own = float(log_softmax(logits)[chosen])
        if not self._request.logprobs:
            return Token(chosen, own)
        ids, values = top_logprobs(logits, self._request.logprobs)
        return Token(chosen, own, tuple((int(i), float(v)) for i, v in zip(ids, values, strict=True)))


class _Shape:
    """Biases and penalties: what they make of logits after the prompt and the answer so far."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._biased = np.array([ident for ident, _ in request.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in request.logit_bias], np.float64)
        self._prompt = set(request.tokens) if request.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}

    def count(self, token: int) -> None:
        self._counts[token] = self._counts.get(token, 0) + 1

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """float64 [V]; `logits` stay as they are."""
        out = logits.astype(np.float64)
        np.add.at(out, self._biased, self._bias)
        factor = self._request.repetition_penalty
        if factor != 1:
            seen = np.fromiter(self._prompt | self._counts.keys(), np.int64)
            out[seen] = np.where(out[seen] > 0, out[seen] / factor, out[seen] * factor)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64)
            times = np.fromiter(self._counts.values(), np.float64)
            out[ids] -= self._request.presence_penalty + self._request.frequency_penalty * times
        return out
