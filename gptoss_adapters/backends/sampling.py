"""A Request's draws, and the tokens that answer it."""

from __future__ import annotations

import numpy as np

from gptoss_adapters.backends.protocol import BackendFailed, Request, Token
from gptoss_adapters.reference.sampling import draw, log_softmax, top_logprobs


class Sampler:
    """Picks ids by a Request's temperature, filters and seed."""

    def __init__(self, request: Request) -> None:
        self._request, self._random = request, np.random.default_rng(request.seed)

    def pick(self, logits: np.ndarray) -> int:
        """An id for logits [V], see `draw`. Raises BackendFailed for NaN."""
        if np.isnan(logits).any():
            raise BackendFailed("returned NaN logits")
        return draw(logits, self._request, self._random)

    def token(self, chosen: int, logits: np.ndarray) -> Token:
        """The Token for `chosen` with the log-probabilities that the request asks for."""
        if self._request.logprobs is None:
            return Token(chosen)
        own = float(log_softmax(logits)[chosen])
        if not self._request.logprobs:
            return Token(chosen, own)
        ids, values = top_logprobs(logits, self._request.logprobs)
        return Token(chosen, own, tuple((int(i), float(v)) for i, v in zip(ids, values, strict=True)))
