"""Log-probabilities of a prompt's own tokens, against a slow oracle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gptoss_adapters.backends.scoring import PromptLogprobs, score_blocks


def never() -> bool:
    return False


def oracle(logits: np.ndarray, tokens: Sequence[int], k: int) -> list[tuple[float, int, list[tuple[int, float]]]]:
    """(own, rank, best) of each token but the first, in Python's floats."""
    out = []
    for row, token in zip(logits[:-1].tolist(), tokens[1:], strict=True):
        total = math.log(math.fsum(math.exp(x) for x in row))
        ordered = sorted(range(len(row)), key=lambda i: (-row[i], i))
        out.append((row[token] - total, ordered.index(token) + 1, [(i, row[i] - total) for i in ordered[:k]]))
    return out


@pytest.mark.parametrize("parts", [[100], [1] * 100, [33, 32, 31, 4], [64, 36]])
@pytest.mark.parametrize("k", [0, 1, 5])
def test_against_the_oracle(parts: list[int], k: int) -> None:
    rng = np.random.default_rng(17)
    logits = rng.normal(size=(100, 50)).astype(np.float32).round(1)  # with ties
    tokens = rng.integers(0, 50, 100).tolist()
    blocks = np.split(logits, np.cumsum(parts)[:-1])
    found = score_blocks(blocks, tokens, max(k, 1), never)
    assert [array.dtype for array in found] == [np.float32, np.int32, np.int32, np.float32]
    expected = oracle(logits, tokens, max(k, 1))
    assert np.allclose(found.own, [own for own, _, _ in expected], atol=1e-5)
    assert found.ranks.tolist() == [rank for _, rank, _ in expected]
    totals = np.log(np.exp(logits[:-1].astype(np.float64)).sum(axis=1, keepdims=True))
    assert np.allclose(found.best, np.take_along_axis(logits[:-1], found.ids, axis=1) - totals, atol=1e-5)
    assert np.allclose(found.best, [[value for _, value in best] for _, _, best in expected], atol=1e-5)


def test_a_token_that_is_the_best_has_the_best_ones_value() -> None:
    """Harnesses ask by equality whether a token is the most probable one."""
    logits = np.random.default_rng(3).normal(size=(40, 1000)).astype(np.float32)
    tokens = [0, *logits.argmax(axis=1)[:-1].tolist()]
    found = score_blocks([logits], tokens, 3, never)
    assert found.ranks.tolist() == [1] * 39 and found.own.tolist() == found.best[:, 0].tolist()


def test_one_token_has_nothing_before_it() -> None:
    found = score_blocks([np.zeros((1, 10), np.float32)], [4], 2, never)
    assert [array.shape for array in found] == [(0,), (0,), (0, 2), (0, 2)]


def test_it_ends_early_when_cancelled() -> None:
    blocks = iter([np.zeros((2, 10), np.float32)] * 3)
    found = score_blocks(blocks, [1] * 7, 1, lambda: True)
    assert len(found.own) == 2 and len(list(blocks)) == 2


def test_parts_join() -> None:
    one = score_blocks([np.eye(4, dtype=np.float32)], [0, 1, 2, 3], 2, never)
    both = PromptLogprobs.join([one, one])
    assert both.own.tolist() == one.own.tolist() * 2 and both.ids.shape == (6, 2)
