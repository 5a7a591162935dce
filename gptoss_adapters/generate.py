"""The decode loop over the reference model: prefill in chunks, then one token at a time with a KV cache.

`generate` for whole answers (ragged batches), `stream` for one answer token by token. `python -m gptoss_adapters.generate`
(and `gptoss-chat`) talk to a checkpoint: see `gptoss_adapters.chat`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptoss_adapters.errors import UsageError
from gptoss_adapters.spec import EOS_TOKEN_IDS

if TYPE_CHECKING:
    from gptoss_adapters.model import Cache, GptOss

PREFILL_CHUNK = 512  # prompt tokens per forward pass: bounds the memory of activations


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
        for name, ok in (("temperature", self.temperature >= 0), ("top_k", self.top_k >= 0),
                         ("top_p", 0 < self.top_p <= 1), ("min_p", 0 <= self.min_p <= 1)):  # fmt: skip
            if not ok:
                raise UsageError(f"{name} is out of range", got=getattr(self, name))


@dataclass(slots=True)
class Generation:
    """One answer: its token ids (the stop id included), why it ended ("stop" or "length"), natural-log probabilities.

    logprobs[i] belongs to tokens[i], before temperature and filters; top_logprobs[i] is [(id, logprob), ...] by falling
    probability, as many as were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


def generate(model: GptOss, prompts: Tensor | Sequence[Sequence[int]] | Sequence[int], *, max_tokens: int = 256,
             sampling: Sampling | None = None, stop_ids: Sequence[int] | None = None, top_logprobs: int = 0) -> list[Generation]:  # fmt: skip
    """Continue each prompt (ids; ragged is fine) by up to max_tokens, or to the end of the context.

    Raises UsageError for an empty or too long prompt.

    stop_ids: default <|return|>, <|call|> and <|endoftext|>, plus the config's eos.
    """
    rows = _rows(prompts)
    answers = [Generation() for _ in rows]
    for column in _steps(model, rows, max_tokens, sampling, stop_ids, top_logprobs):
        for answer, step in zip(answers, column, strict=True):
            if step is not None:
                _record(answer, step)
    return answers


def stream(model: GptOss, prompt: Sequence[int], *, max_tokens: int = 256, sampling: Sampling | None = None,
           stop_ids: Sequence[int] | None = None, top_logprobs: int = 0) -> Iterator[Step]:  # fmt: skip
    """The same for one prompt, one Step per token as it comes; close the iterator to stop early."""
    for (step,) in _steps(model, _rows(prompt), max_tokens, sampling, stop_ids, top_logprobs):
        assert step is not None  # a single row ends the loop when it stops
        yield step


@dataclass(frozen=True, slots=True)
class Step:
    token: int
    logprob: float
    top: list[tuple[int, float]]
    stopped: bool


def _record(answer: Generation, step: Step) -> None:
    answer.tokens.append(step.token)
    answer.logprobs.append(step.logprob)
    answer.top_logprobs.append(step.top)
    if step.stopped:
        answer.finish_reason = "stop"


def _steps(model: GptOss, rows: list[list[int]], max_tokens: int, sampling: Sampling | None, stop_ids: Sequence[int] | None,
           top: int) -> Iterator[list[Step | None]]:  # fmt: skip
    """One list per decoded column: a Step per row, None for a row that has ended."""
    sampling = sampling or Sampling()
    stops = set(stop_ids if stop_ids is not None else (*EOS_TOKEN_IDS, model.config.eos_token_id))
    rng = torch.Generator().manual_seed(sampling.seed) if sampling.seed is not None else torch.Generator()
    if sampling.seed is None:
        rng.seed()
    max_tokens = min(max_tokens, model.config.max_position_embeddings - max(map(len, rows)) + 1)
    if max_tokens < 1:
        return
    cache = model.new_cache()
    logits, positions = prefill(model, rows, cache)
    alive = [True] * len(rows)
    for n in range(max_tokens):
        logp = logits[:, -1].float().log_softmax(-1)
        tokens = pick(logp, sampling, rng)
        yield [_step(logp[i], int(t), top, stops) if alive[i] else None for i, t in enumerate(tokens)]
        alive = [a and int(t) not in stops for a, t in zip(alive, tokens, strict=True)]
        if not any(alive) or n + 1 == max_tokens:
            return
        positions = positions + 1
        logits = model(tokens[:, None], cache=cache, positions=positions, last_only=True)


def _step(logp: Tensor, token: int, top: int, stops: set[int | None]) -> Step:
    best = logp.topk(min(top, len(logp))) if top else None
    pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best is not None else []
    return Step(token, float(logp[token]), pairs, token in stops)


def prefill(model: GptOss, rows: list[list[int]], cache: list[Cache]) -> tuple[Tensor, Tensor]:
    """Run the prompts through the model in chunks. -> logits of the last column [B, 1, V], its positions [B, 1]."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    positions = torch.tensor([[-1] * (width - len(r)) + list(range(len(r))) for r in rows])
    cut = (width - 1) // PREFILL_CHUNK * PREFILL_CHUNK
    for start in range(0, cut, PREFILL_CHUNK):
        chunk = slice(start, start + PREFILL_CHUNK)
        model.hidden(ids[:, chunk], cache=cache, positions=positions[:, chunk])
    return model(ids[:, cut:], cache=cache, positions=positions[:, cut:], last_only=True), positions[:, -1:]


def pick(logp: Tensor, sampling: Sampling, rng: torch.Generator) -> Tensor:
    """logp [B, V] -> the next token of each row, [B] int64, on the CPU."""
    if sampling.temperature == 0:
        return logp.argmax(-1).cpu()
    shifted = logp.cpu() - logp.cpu().max(-1, keepdim=True).values  # so that a tiny temperature does not overflow
    ranked, order = (shifted / sampling.temperature).softmax(-1).sort(-1, descending=True)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = 0
    keep = ranked >= sampling.min_p * ranked[:, :1]
    keep &= ranked.cumsum(-1) - ranked < sampling.top_p * ranked.sum(-1, keepdim=True)
    drawn = torch.multinomial(ranked * keep, 1, generator=rng)
    return order.gather(-1, drawn)[:, 0]


def _rows(prompts: Tensor | Sequence[Sequence[int]] | Sequence[int]) -> list[list[int]]:
    given: list[Any] = prompts.tolist() if isinstance(prompts, Tensor) else list(prompts)
    try:
        rows = [[index(t) for t in row] for row in (given if given and isinstance(given[0], Iterable) else [given])]
    except TypeError:
        raise UsageError("a prompt must be a list of token ids") from None
    if not all(rows):
        raise UsageError("a prompt is empty")
    if any(not 0 <= t < 2**63 for row in rows for t in row):
        raise UsageError("a prompt holds a token id outside the vocabulary")
    return rows


if __name__ == "__main__":
    from gptoss_adapters.chat import main

    main()
