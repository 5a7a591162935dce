"""Decoding: cached equals uncached, batched equals single, and the sampling filters do what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.generate import KeptCache, generate, pick, stream
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.sampling import Sampling

TINY = Path(__file__).parents[1] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"
PROMPTS = [[5, 17, 300, 2], list(range(40, 60)), [9]]


@pytest.fixture(scope="module")
def model() -> GptOss:
    return GptOss.from_checkpoint(TINY, dtype=torch.float64)  # no rounding: equality of tokens is then exact


def greedy_without_cache(model: GptOss, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_with_a_cache_and_ragged_rows_equals_running_everything_again(model: GptOss) -> None:
    answers = generate(model, PROMPTS, max_tokens=12, stop_ids=[])
    assert [a.tokens for a in answers] == [greedy_without_cache(model, p, 12) for p in PROMPTS]
    assert {a.finish_reason for a in answers} == {"length"}


def test_stream_gives_the_same_tokens_and_stops_at_a_stop_id(model: GptOss) -> None:
    whole = generate(model, PROMPTS[0], max_tokens=12, stop_ids=[])[0]
    assert [step.token for step in stream(model, PROMPTS[0], max_tokens=12, stop_ids=[])] == whole.tokens
    stop = whole.tokens[4]
    cut = generate(model, PROMPTS[0], max_tokens=12, stop_ids=[stop])[0]
    assert cut.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    assert cut.finish_reason == "stop"


def test_logprobs_are_those_of_the_forward_pass(model: GptOss) -> None:
    answer = generate(model, PROMPTS[1], max_tokens=3, stop_ids=[], top_logprobs=5)[0]
    want = model(torch.tensor([PROMPTS[1] + answer.tokens]))[0].float().log_softmax(-1)
    for i, token in enumerate(answer.tokens):
        row = want[len(PROMPTS[1]) - 1 + i]
        assert answer.logprobs[i] == pytest.approx(float(row[token]), abs=1e-5)
        assert [t for t, _ in answer.top_logprobs[i]] == row.topk(5).indices.tolist()


def test_a_seed_repeats_and_temperature_zero_is_greedy(model: GptOss) -> None:
    hot = Sampling(temperature=1.5, seed=3)
    first, again = (generate(model, PROMPTS, max_tokens=8, sampling=hot, stop_ids=[]) for _ in range(2))
    assert [a.tokens for a in first] == [a.tokens for a in again]
    other = generate(model, PROMPTS, max_tokens=8, sampling=Sampling(temperature=1.5, seed=4), stop_ids=[])
    assert [a.tokens for a in first] != [a.tokens for a in other]


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=2, seed=0), {1, 3}),
        (Sampling(temperature=1.0, top_p=0.6, seed=0), {1, 3}),  # 0.5 is not enough, 0.75 is
        (Sampling(temperature=1.0, min_p=0.3, seed=0), {0, 1, 3}),
        (Sampling(temperature=1.0, top_p=0.4, seed=0), {1}),
        (Sampling(temperature=1e-4, seed=0), {1}),
    ],
)
def test_filters_keep_what_they_say(sampling: Sampling, allowed: set[int]) -> None:
    logp = torch.tensor([0.2, 0.5, 0.05, 0.25]).log().expand(4000, -1)
    drawn = pick(logp, sampling, np.random.default_rng(0)).tolist()
    assert set(drawn) == allowed


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.2, 0.5, 0.05, 0.25])
    drawn = pick(probabilities.log().expand(10_000, -1), Sampling(temperature=1.0), np.random.default_rng(0))
    torch.testing.assert_close(drawn.bincount(minlength=4) / 10_000, probabilities, atol=0.02, rtol=0)


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}])
def test_sampling_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "line"),
    [([[1, 2], []], "empty"), ([], "empty"), ([[1.5]], "list of token ids"), ([[2**70]], "outside the vocabulary")],
)
def test_a_bad_prompt_is_refused(model: GptOss, prompt: list[list[int]], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        generate(model, prompt)


def test_the_end_of_the_context_ends_the_answer(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"max_position_embeddings": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = generate(GptOss.from_checkpoint(tmp_path), [1, 2, 3, 4, 5, 6], max_tokens=20, stop_ids=[])[0]
    assert len(answer.tokens) == 3  # the last one needs no position of its own
    assert answer.finish_reason == "length"


def test_top_p_counts_what_top_k_left() -> None:
    logp = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(1000, -1)
    drawn = pick(logp, Sampling(temperature=1.0, top_k=2, top_p=0.5, seed=0), np.random.default_rng(0))
    assert set(drawn.tolist()) == {0}
    cold = pick(logp, Sampling(temperature=1e-42, seed=0), np.random.default_rng(0))
    assert set(cold.tolist()) == {0}


def test_no_tokens_asked_for_none_given(model: GptOss) -> None:
    assert generate(model, PROMPTS, max_tokens=0)[0].tokens == []


def test_a_conversation_goes_on_from_the_cache(model: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a prompt shares with the last one is not run again, also beyond the window (8 here), and the answers are
    the same.
    """
    kept, ran = KeptCache(model), []
    forward = GptOss.__call__

    def counted(self: GptOss, ids: torch.Tensor, **options: object) -> torch.Tensor:
        ran.append(ids.shape[1])
        return forward(self, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GptOss, "__call__", counted)
    first = list(range(100, 150))
    prompts = [first, [*first, 7, 8, 9], [*first, 7, 8, 9, 10], [*first[:20], 1], first]
    for prompt, new in zip(prompts, (50, 3, 1, 21, 50), strict=True):
        ran.clear()
        answer = [step.token for step in stream(model, prompt, max_tokens=6, stop_ids=[], kept=kept)]
        assert ran == [new, 1, 1, 1, 1, 1]
        assert answer == generate(model, prompt, max_tokens=6, stop_ids=[])[0].tokens
