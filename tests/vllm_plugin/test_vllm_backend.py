"""The vllm engine behind the backend protocol: its self-test, vLLM against the reference, requests that end early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.backends import Backend, open_backend, selftest
from gptoss_adapters.backends.sampling import log_softmax
from gptoss_adapters.errors import BadInput, NotComparable, UsageError

GOLD = Path(__file__).parents[1] / "data" / "checkpoints"
pytestmark = pytest.mark.backend("vllm")
PROMPT = [int(t) for t in np.random.RandomState(0).randint(0, 300, 80)]  # beyond the sliding window of the gold models


@pytest.fixture(scope="module")
def vllm() -> Iterator[Backend]:
    with open_backend("vllm", GOLD / "tiny" / "hf-bf16", plugin="off", n_batch=64, n_ctx=512) as backend:
        yield backend


def test_self_test() -> None:
    with open_backend("vllm", GOLD / "tiny" / "hf-bf16", plugin="off", n_ctx=512) as backend:
        found = selftest.run(backend)
    errors = {what: value for what, value in found.items() if what != "sampling z"}
    assert len(errors) >= 5 and max(errors.values()) < 1e-4, found


def test_logits_of_a_prefill_in_chunks_are_the_reference_s(vllm: Backend) -> None:
    assert vllm.info.settings["n_batch"] == 64 < len(PROMPT)
    with open_backend("torch", GOLD / "tiny" / "hf-bf16") as reference:
        expected = log_softmax(reference.logits(PROMPT))
    got = log_softmax(vllm.logits(PROMPT))
    assert np.abs(got - expected).max() < 1e-3
    assert np.array_equal(log_softmax(vllm.logits(PROMPT, start=70)), got[70:])


def test_seeds(vllm: Backend) -> None:
    first, again, other = (
        vllm.generate(PROMPT[:40], max_tokens=16, temperature=1.0, seed=s, logprobs=2) for s in (3, 3, 4)
    )
    assert first == again != other
    logprobs = log_softmax(vllm.logits(PROMPT[:40]))[-1]
    assert abs(first.tokens[0].logprob - logprobs[first.ids[0]]) < 1e-4
    assert [i for i, _ in first.tokens[0].top] == list(np.argsort(-logprobs)[:2])


def test_stop_ids_and_a_closed_stream(vllm: Backend) -> None:
    greedy = vllm.generate(PROMPT, max_tokens=6)
    assert greedy.reason == "length" and len(greedy.ids) == 6
    stop = greedy.ids[3]
    stopped = vllm.generate(PROMPT, max_tokens=6, stop_ids=[stop])
    assert (stopped.ids, stopped.reason) == (greedy.ids[: greedy.ids.index(stop) + 1], "stop")
    stream = vllm.stream(PROMPT, max_tokens=400)
    next(stream)
    stream.close()
    assert vllm.generate(PROMPT, max_tokens=6) == greedy  # nothing of the closed one is left


def test_what_it_refuses(vllm: Backend, tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match=r"cannot sample after a prefill in chunks: open it with a larger n_batch"):
        vllm.generate(PROMPT, temperature=1.0)
    with pytest.raises(UsageError, match=r"argument plugin is out of range \(expected off, auto, force, got on\)"):
        open_backend("vllm", GOLD / "tiny" / "hf-bf16", plugin="on")
    with pytest.raises(BadInput, match=r"vllm refuses the checkpoint: .*config.json"):
        open_backend("vllm", tmp_path)
