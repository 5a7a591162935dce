"""The sampler that all engines with logits share, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gptoss_adapters.backends import BackendFailed, Capabilities, Info, Request, Token
from gptoss_adapters.backends.sampling import Sampler
from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.sampling import distribution, draw, log_softmax, top_logprobs

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def kept(**request: float) -> dict[int, float]:
    asked: Any = {"temperature": 1.0, **request}
    ids, p = distribution(LOGITS, Request([0], **asked))
    return {int(i): round(float(v), 6) for v, i in sorted(zip(p, ids, strict=True), reverse=True)}


def test_log_softmax_is_exact_for_large_and_excluded_logits() -> None:
    assert np.allclose(np.exp(log_softmax(np.array([1e4, 1e4, -np.inf], np.float32))), [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("request_", "ids"),
    [
        ({}, [1, 3, 4, 2, 0]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.45}, [1, 3, 4]),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.3}, [1, 3, 4]),
    ],
)
def test_filters(request_: dict[str, float], ids: list[int]) -> None:
    assert list(kept(**request_)) == ids


def test_temperature_comes_before_the_filters() -> None:
    hot = kept(temperature=2.0)
    root = np.sqrt([0.4, 0.25, 0.2, 0.1, 0.05])
    assert np.allclose(list(hot.values()), root / root.sum(), atol=1e-6)
    assert list(kept(temperature=0.5, min_p=0.5)) == [1]  # 0.4^2 : 0.25^2


@pytest.mark.parametrize("seed", range(20))
def test_filters_against_a_full_sort(seed: int) -> None:
    random = np.random.RandomState(seed)
    logits = (random.standard_normal(300) * random.choice([0.1, 1, 5])).astype(np.float32)
    k, top_p, min_p = (
        int(random.choice([0, 1, 7, 300, 500])),
        float(random.choice([1, 0.99, 0.5, 0.01])),
        float(random.choice([0, 0.01, 0.9])),
    )
    ids, p = distribution(logits, Request([0], temperature=0.8, top_k=k, top_p=top_p, min_p=min_p))
    whole = np.exp(log_softmax(logits.astype(np.float64) / 0.8))
    order = np.argsort(-whole, kind="stable")[: k or None]
    mass = whole[order].cumsum() / whole[order].sum()
    order = order[: 1 + int((mass < top_p).sum())] if top_p < 1 else order
    order = order[whole[order] >= min_p * whole.max()]
    assert sorted(ids) == sorted(order) and np.array_equal(p, whole[ids])


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(Request([0], temperature=1.0, seed=1))
    n = 20_000
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(n)], minlength=5)
    p = np.exp(log_softmax(LOGITS))
    assert (((counts - n * p) ** 2) / (n * p)).sum() < 23.5  # chi-square, 4 degrees: 1 in 10 000


def test_seeds_and_greedy() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(Request([0], temperature=1.0, seed=seed))
        return [sampler.pick(LOGITS) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
    assert Sampler(Request([0])).pick(np.array([1.0, 3.0, 3.0])) == 1


def test_masked_ids_are_never_drawn() -> None:
    masked = np.where(np.arange(5) == 2, LOGITS, -np.inf).astype(np.float32)
    assert {Sampler(Request([0], temperature=1.0, seed=s)).pick(masked) for s in range(20)} == {2}


def test_nan_is_no_token() -> None:
    with pytest.raises(BackendFailed, match="NaN"):
        Sampler(Request([0])).pick(np.array([0.0, np.nan]))


def test_top_logprobs_breaks_ties_by_id() -> None:
    ids, values = top_logprobs(np.array([[0.0, 1.0, 1.0, -1.0]], np.float32), 3)
    assert ids.tolist() == [[1, 2, 0]] and ids.dtype == np.int32 and values[0, 0] == values[0, 1] > values[0, 2]


def test_reported_logprobs_ignore_temperature() -> None:
    sampler = Sampler(Request([0], temperature=0.1, logprobs=2))
    token = sampler.token(3, LOGITS)
    assert token.logprob == pytest.approx(np.log(0.25)) and [i for i, _ in token.top] == [1, 3]
    assert Sampler(Request([0])).token(3, LOGITS) == Token(3)


def shaped(logits: np.ndarray, prompt: list[int], answer: list[int], request: Request) -> list[float]:
    """The definitions, number by number."""
    out = [float(x) for x in logits]
    for ident, bias in request.logit_bias:
        out[ident] += bias
    for ident in range(len(out)):
        if ident in prompt or ident in answer:
            factor = request.repetition_penalty
            out[ident] = out[ident] / factor if out[ident] > 0 else out[ident] * factor
        if ident in answer:
            out[ident] -= request.presence_penalty + request.frequency_penalty * answer.count(ident)
    return out


@pytest.mark.parametrize("seed", range(30))
def test_penalties_and_biases_against_the_definitions(seed: int) -> None:
    random = np.random.RandomState(seed)
    prompt = [int(i) for i in random.randint(0, 12, 6)]
    request = Request(
        prompt,
        temperature=float(random.choice([0.0, 0.8])),
        seed=seed,
        presence_penalty=float(random.choice([0, 0.7, -1])),
        frequency_penalty=float(random.choice([0, 0.25, -0.5])),
        repetition_penalty=float(random.choice([1, 1.5, 0.7])),
        logit_bias=[(3, 2.0), (5, -100.0), (3, 0.5)][: random.randint(0, 4)],
    )
    oracle = np.random.default_rng(seed)
    sampler = Sampler(request)
    answer: list[int] = []
    for _ in range(40):
        logits = (2 * random.standard_normal(12)).astype(np.float32)
        before = logits.copy()
        chosen = sampler.pick(logits)
        wanted = np.array(shaped(logits, prompt, answer, request))
        assert chosen == draw(wanted, request, oracle)
        assert sampler.token(chosen, logits) == Token(chosen) and np.array_equal(logits, before)
        answer.append(chosen)


def test_a_bias_brings_back_nothing_that_is_excluded() -> None:
    masked = np.where(np.arange(5) == 2, LOGITS, -np.inf).astype(np.float32)
    request = Request([1], logit_bias=[(1, 100.0)], repetition_penalty=0.5, presence_penalty=-2.0)
    assert Sampler(request).pick(masked) == 2


@pytest.mark.parametrize(
    ("asked", "able", "words"),
    [
        ({"presence_penalty": 0.5}, {}, "takes no penalties"),
        (
            {"repetition_penalty": 1.1, "grammar": "root ::= [a]"},
            {"penalties": "free"},
            "no penalties beside a grammar",
        ),
        ({"logit_bias": [(1, 1.0)]}, {}, "takes no logit_bias"),
        ({"logit_bias": [(5, 1.0)]}, {"logit_bias": True}, "logit_bias is out of range"),
        ({"repetition_penalty": 0.0}, {"penalties": "always"}, "repetition_penalty is out of range"),
        ({"frequency_penalty": float("nan")}, {"penalties": "always"}, "frequency_penalty is out of range"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(asked: dict[str, Any], able: dict[str, Any], words: str) -> None:
    info = Info("e", "1", 5, 10, (), Capabilities("full", grammar=True, **able))
    with pytest.raises(UsageError, match=words):
        Request([0], **asked).check(info)
