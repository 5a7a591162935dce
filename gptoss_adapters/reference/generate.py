"""The decode loop over the reference model: prefill in chunks, then one token at a time with a KV cache.

`generate` for whole answers (ragged batches), `stream` for one answer token by token, `KeptCache` for a conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.cache import Cache
from gptoss_adapters.reference.decode_graph import DecodeGraph, context_for, worthwhile
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.sampling import Sampling, draw
from gptoss_adapters.spec import EOS_TOKEN_IDS

PREFILL_CHUNK = 512  # prompt tokens per forward pass: bounds the memory of activations


@dataclass(slots=True)
class Continuation:
    """One answer: its token ids (the stop id included), why it ended ("stop" or "length"), natural-log probabilities.

    logprobs[i] belongs to tokens[i], before temperature and filters; top_logprobs[i] is [(id, logprob), ...] by falling
    probability, as many as were asked for.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


def generate(
    model: GptOss,
    prompts: Tensor | Sequence[Sequence[int]] | Sequence[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    top_logprobs: int = 0,
) -> list[Continuation]:
    """Continue each prompt (ids; ragged is fine) by up to max_tokens, or to the end of the context.

    Raises UsageError for an empty or too long prompt.

    stop_ids: default <|return|>, <|call|> and <|endoftext|>, plus the config's eos.
    """
    rows = read_prompts(prompts)
    answers = [Continuation() for _ in rows]
    for column in _steps(model, rows, max_tokens, sampling, stop_ids, top_logprobs):
        for answer, step in zip(answers, column, strict=True):
            if step is not None:
                _record(answer, step)
    return answers


def stream(
    model: GptOss,
    prompt: Sequence[int],
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] | None = None,
    top_logprobs: int = 0,
    kept: KeptCache | None = None,
) -> Iterator[Step]:
    """The same for one prompt, one Step per token as it comes; close the iterator to stop early. With `kept`, what the
    prompt shares with the last one that used it is not run again.
    """
    for (step,) in _steps(model, read_prompts(prompt), max_tokens, sampling, stop_ids, top_logprobs, kept):
        assert step is not None  # a single row ends the loop when it stops
        yield step


@dataclass(frozen=True, slots=True)
class Step:
    token: int
    logprob: float
    top: list[tuple[int, float]]
    stopped: bool


def _record(answer: Continuation, step: Step) -> None:
    answer.tokens.append(step.token)
    answer.logprobs.append(step.logprob)
    answer.top_logprobs.append(step.top)
    if step.stopped:
        answer.finish_reason = "stop"


def _steps(
    model: GptOss,
    rows: list[list[int]],
    max_tokens: int,
    sampling: Sampling | None,
    stop_ids: Sequence[int] | None,
    top: int,
    kept: KeptCache | None = None,
) -> Iterator[list[Step | None]]:
    """One list per decoded column: a Step per row, None for a row that has ended."""
    sampling = sampling or Sampling()
    stops = set(stop_ids if stop_ids is not None else (*EOS_TOKEN_IDS, model.config.eos_token_id))
    random = np.random.default_rng(sampling.seed)
    max_tokens = min(max_tokens, model.config.max_position_embeddings - max(map(len, rows)) + 1)
    if max_tokens < 1:
        return
    cache = model.new_cache()
    logits, positions = kept.prefill(rows[0]) if kept else prefill(model, rows, cache)
    with _decode_graph(model, len(rows), max(map(len, rows)) + max_tokens) as graph:
        if graph is not None:
            graph.load(kept.cache if kept else cache)  # `kept` will hold the prompt only
        alive = [True] * len(rows)
        for n in range(max_tokens):
            logp = logits[:, -1].float().log_softmax(-1)
            tokens = pick(logp, sampling, random)
            yield [_read_step(logp[i], int(t), top, stops) if alive[i] else None for i, t in enumerate(tokens)]
            alive = [a and int(t) not in stops for a, t in zip(alive, tokens, strict=True)]
            if not any(alive) or n + 1 == max_tokens:
                return
            positions = positions + 1
            if graph is not None:
                logits = graph.step(tokens, positions)
            elif kept is not None:
                logits = kept.step(tokens.tolist())
            else:
                logits = model(tokens[:, None], cache=cache, positions=positions, last_only=True)


@contextmanager
def _decode_graph(model: GptOss, rows: int, tokens: int) -> Iterator[DecodeGraph | None]:
    """The decode step of so many rows and tokens as a CUDA graph, where that is worthwhile: the model's last one,
    if it fits and no other answer is using it."""
    if not worthwhile(model, rows):
        yield None
        return
    graph, model.graph = model.graph, None  # not to be shared, and its buffers go before the next ones come
    context = context_for(model, tokens)
    if graph is None or (graph.rows, graph.context) != (rows, context):
        graph = None
        graph = DecodeGraph(model, rows, context)
    try:
        yield graph
    finally:
        model.graph = graph


def _read_step(logp: Tensor, token: int, top: int, stops: set[int | None]) -> Step:
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


def pick(logp: Tensor, sampling: Sampling, random: np.random.Generator) -> Tensor:
    """logp [B, V] -> the next token of each row, [B] int64, on the CPU."""
    if sampling.temperature == 0:
        return logp.argmax(-1).cpu()
    return torch.tensor([draw(row, sampling, random) for row in logp.cpu().numpy()])


class KeptCache:
    """The cache of a conversation, and where it can be taken up again: a prompt that begins as the last one did is not
    run anew.

    A full layer can be cut anywhere. A sliding one has dropped what left its window, so it goes back only to a marked
    place, where references to its tensors were kept: the ends of a prefill's steps, and now.
    """

    MARKS = 8

    def __init__(self, model: GptOss) -> None:
        self.model, self.cache, self.tokens = model, model.new_cache(), list[int]()
        self._marks: dict[int, list[tuple[Any, ...]]] = {0: self._state()}

    def prefill(self, prompt: list[int]) -> tuple[Tensor, Tensor]:
        """As the function of this name, from the last place that the prompt shares."""
        for at in range(self.rewind(prompt), len(prompt), PREFILL_CHUNK):
            logits = self.step(prompt[at : at + PREFILL_CHUNK])
            self.mark()
        return logits, torch.tensor([[len(prompt) - 1]])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The model on the next tokens -> logits of the last one [1, 1, V]."""
        try:
            logits = self.model(torch.tensor([list(tokens)]), cache=self.cache, last_only=True)
        except BaseException:
            self._forget()  # some layers may have taken the step, others not
            raise
        self.tokens += tokens
        return logits

    def mark(self) -> None:
        """Remember this place."""
        if len(self._marks) > self.MARKS:
            del self._marks[sorted(self._marks)[1]]  # the start stays
        self._marks[len(self.tokens)] = self._state()

    def rewind(self, prompt: Sequence[int]) -> int:
        """Go back to the last place that the prompt shares, short of its last token; returns how many tokens are
        kept.
        """
        self.mark()
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt) - 1))
        n = max(place for place in self._marks if place <= shared)
        for layer, state in zip(self.cache, self._marks[n], strict=True):
            if layer.window is None and n > 0:
                layer.end = n
            else:
                layer.k, layer.v, layer.positions, layer.start, layer.end = state
        self._marks = {place: state for place, state in self._marks.items() if place <= n}
        del self.tokens[n:]
        return n

    def _forget(self) -> None:
        self.cache, self.tokens = self.model.new_cache(), []
        self._marks = {0: self._state()}

    def _state(self) -> list[tuple[Any, ...]]:
        nothing = (None, None, None, 0, 0)
        return [
            nothing if layer.window is None else (layer.k, layer.v, layer.positions, layer.start, layer.end)
            for layer in self.cache
        ]


def read_prompts(prompts: Tensor | Sequence[Sequence[int]] | Sequence[int]) -> list[list[int]]:
    """One row of ids per prompt. Raises UsageError for what no model takes."""
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
