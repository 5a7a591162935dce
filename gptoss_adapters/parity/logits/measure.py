"""One pass over the prompts: the truth, the nulls and every target side by side, so that no more than one prompt's
logits are held.

The truth is the reference in float64 (float32 for models too large for that) with experts decoded one by one. For
judging, every
answer is kept as *values*: centred logits at `ids`, which are a fixed sample of the vocabulary, or what an engine's top
k gave.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.parity.faults.table import find_fault
from gptoss_adapters.parity.logits.metrics import (
    F64,
    Positions,
    Truth,
    centre,
    compare_full,
    compare_top,
    following_tokens,
    joined,
)
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.noise.nulls import Noise, realisations
from gptoss_adapters.parity.noise.variants import by_length, experts, logits_batch
from gptoss_adapters.reference.model import GptOss

SAMPLE = 512  # vocabulary entries that stand for all of it
FLOAT64_PARAMETERS = 500_000_000
TOP_K = 64
BRIEF_VOCABULARY = 32768
_BLOCK = 1 << 23  # logits held together
Progress = Callable[[str, int, int], None]


@dataclass
class Answer:
    """Full logits [T, V], or ids [T, k] with log-probabilities."""

    full: np.ndarray | None = None
    ids: np.ndarray | None = None
    logprobs: np.ndarray | None = None


class Subject(Protocol):
    """What is judged."""

    def answer(self, prompt: Prompt) -> Answer: ...


@dataclass
class ModelSubject:
    """A variant of the reference in this process."""

    model: GptOss

    def answer(self, prompt: Prompt) -> Answer:
        return Answer(logits_batch(self.model, torch.tensor([prompt.ids]))[0].float().numpy())


@dataclass
class Record:
    """What one subject gave, by prompt. values [T, S] centred float64 at ids ([S], or [T, S] for top k)."""

    prompts: list[Prompt]
    ids: list[np.ndarray] = field(default_factory=list)
    values: list[F64] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)  # against the plain truth
    nulls: list[list[F64]] = field(
        default_factory=list
    )  # [realisation][prompt]: errors against the plain truth, at the same ids
    null_positions: dict[str, list[Positions]] = field(default_factory=dict)
    lower_bound: bool = False


class Reference:
    """The truth over one checkpoint, and variants of it. carry: faults that it is given on purpose."""

    def __init__(self, checkpoint: Checkpoint, carry: Sequence[str] = ()) -> None:
        small = checkpoint.config.parameters()[0] <= FLOAT64_PARAMETERS
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.dtype = torch.float64 if small else torch.float32
        self.model = GptOss.from_checkpoint(checkpoint, self.dtype, experts="oracle")
        if small:
            for layer in experts(self.model):
                layer.weights = {name: _remembered(read) for name, read in layer.weights.items()}
        self.model = self.carrying(carry)
        v = self.config.vocab_size
        chosen = (
            np.arange(v)
            if v <= SAMPLE
            else np.sort(np.random.Generator(np.random.PCG64(0)).choice(v, SAMPLE, replace=False))
        )
        self.sample = chosen.astype(np.int64)

    def carrying(self, faults: Sequence[str]) -> GptOss:
        model = self.model
        for name in faults:
            model = find_fault(name).apply(model)
        return model

    def with_model(self, model: GptOss) -> Reference:
        """The same with another variant for the truth."""
        made = copy.copy(self)
        made.model = model
        return made

    def hidden(self, model: GptOss, prompts: Sequence[Prompt]) -> list[Tensor]:
        """[T, H] after the last norm, per prompt; prompts of one length go in one batch."""
        out: dict[int, Tensor] = {}
        for indices in by_length([p.ids for p in prompts]):
            batch = model.hidden(torch.tensor([prompts[i].ids for i in indices]))
            out |= dict(zip(indices, batch, strict=True))
        return [out[i] for i in range(len(prompts))]

    def values(self, hidden: Tensor, ids: np.ndarray) -> F64:
        """Centred logits of the truth at `ids` [S] or [T, S]."""
        rows = self.model.unembedding[torch.from_numpy(np.ascontiguousarray(ids, np.int64))].to(hidden.dtype)
        z = hidden @ rows.T if ids.ndim == 1 else torch.einsum("th,tsh->ts", hidden, rows)
        return centre(z.numpy())


def _remembered(read: Callable[[int, torch.dtype], Tensor]) -> Callable[[int, torch.dtype], Tensor]:
    """Small models are run a hundred times over: decode each expert once."""
    return cache(read)


def take_record(
    reference: Reference,
    prompts: Sequence[Prompt],
    subject: Subject,
    noise: Noise,
    tick: Callable[[], None] = lambda: None,
) -> Record:
    """Everything that is measured of one subject. Whatever the subject raises goes through."""
    record = Record(list(prompts))
    with torch.inference_mode():
        truth = reference.hidden(reference.model, prompts)
        nulls = [null.apply(reference.model) for null in realisations(noise)]
        names = [null.name for null in realisations(noise)]
        null_hidden = [_null_hidden(name, null, prompts) for name, null in zip(names, nulls, strict=True)]
        record.nulls = [[] for _ in nulls]
        brief = (
            names if reference.config.vocab_size <= BRIEF_VOCABULARY else names[:2]
        )  # whose statistics go over the whole vocabulary
        for i, prompt in enumerate(prompts):
            answer = subject.answer(prompt)
            ids = reference.sample if answer.ids is None else answer.ids.astype(np.int64)
            record.ids.append(ids)
            record.lower_bound |= answer.ids is not None
            record.values.append(centre(answer.full[:, ids] if answer.full is not None else _given(answer)))
            z = reference.values(truth[i], ids)
            for r, (null, hidden) in enumerate(zip(nulls, null_hidden, strict=True)):
                record.nulls[r].append(values_at(null, hidden[i], ids) - z)
            _compare(
                record,
                reference.model,
                truth[i],
                answer,
                prompt,
                {n: (nulls[r], null_hidden[r][i]) for r, n in enumerate(names) if n in brief},
            )
            tick()
    return record


def _null_hidden(name: str, made: GptOss, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Prompt by prompt for the plain one, as engines are asked: a backend with our very arithmetic is then equal
    bit for bit.
    """
    out: dict[int, Tensor] = {}
    for indices in by_length([p.ids for p in prompts]) if name != "plain" else [[i] for i in range(len(prompts))]:
        batch = made.hidden(torch.tensor([prompts[i].ids for i in indices]))
        out |= dict(zip(indices, batch, strict=True))
    return [out[i] for i in range(len(prompts))]


def _pieces(model: GptOss, length: int) -> Iterator[slice]:
    step = max(1, _BLOCK // model.config.vocab_size)
    return (slice(i, i + step) for i in range(0, length, step))


def _logits(model: GptOss, hidden: Tensor) -> np.ndarray:
    made: np.ndarray = model.head(hidden).float().numpy()
    return made


def _given(answer: Answer) -> np.ndarray:
    assert answer.logprobs is not None
    return answer.logprobs


def values_at(model: GptOss, hidden: Tensor, ids: np.ndarray) -> F64:
    """Centred logits of a null at `ids` [S] or [T, S], by its own product."""
    rows = torch.from_numpy(np.ascontiguousarray(ids, np.int64))
    if ids.ndim == 1:
        return centre(model.head(hidden, rows).double().numpy())
    each = [model.head(h, r) for h, r in zip(hidden, rows, strict=True)]
    return centre(torch.stack(each).double().numpy())


def _compare(
    record: Record,
    model: GptOss,
    hidden: Tensor,
    answer: Answer,
    prompt: Prompt,
    nulls: dict[str, tuple[GptOss, Tensor]],
) -> None:
    """Statistics over the whole vocabulary, of the answer and of nulls; in pieces, so that few logits are held."""
    following = following_tokens(prompt.ids)
    own: list[Positions] = []
    theirs: dict[str, list[Positions]] = {name: [] for name in nulls}
    for piece in _pieces(model, len(hidden)):
        truth = Truth.of(_logits(model, hidden[piece]), following[piece])
        if answer.full is not None:
            own.append(compare_full(truth, answer.full[piece]))
        else:
            assert answer.ids is not None
            own.append(compare_top(truth, answer.ids[piece], _given(answer)[piece]))
        for name, (null, states) in nulls.items():
            y = _logits(null, states[piece])
            theirs[name].append(
                compare_full(truth, y, brief=True)
                if answer.full is not None
                else _top(truth, y, _given(answer).shape[1])
            )
    record.positions.append(joined(own))
    for name, parts in theirs.items():
        record.null_positions.setdefault(name, []).append(joined(parts))


def _top(truth: Truth, logits: np.ndarray, k: int) -> Positions:
    """A null's own top k, as many as the engine gave."""
    y = logits.astype(np.float64)
    lq = y - np.log(np.exp(y - y.max(1, keepdims=True)).sum(1, keepdims=True)) - y.max(1, keepdims=True)
    best = np.argsort(-y, 1)[:, :k]
    return compare_top(truth, best, np.take_along_axis(lq, best, 1))
