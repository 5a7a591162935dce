"""One pass over the prompts: the truth, the nulls and every target side by side, so that no more than one prompt's logits are held.

The truth is the reference in float64 (float32 for models too large for that) with experts decoded one by one. For judging, every
answer is kept as *values*: centred logits at `ids`, which are a fixed sample of the vocabulary, or what an engine's top k gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters.checkpoint import Checkpoint
from gptoss_adapters.model import GptOss
from gptoss_adapters.parity.faults import find_fault
from gptoss_adapters.parity.metrics import F64, Positions, centre, compare_full, compare_top, following_tokens, joined
from gptoss_adapters.parity.nulls import Noise, realisations
from gptoss_adapters.parity.probes import Prompt
from gptoss_adapters.parity.variants import experts, logits_batch

SAMPLE = 512  # vocabulary entries that stand for all of it
FLOAT64_PARAMETERS = 500_000_000
TOP_K = 64
_BLOCK = 1 << 24  # logits held together
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
    new_cache: Callable[[], object] | None = None

    def answer(self, prompt: Prompt) -> Answer:
        made = logits_batch(self.model, torch.tensor([prompt.ids]), cache=self.new_cache() if self.new_cache else None)  # type: ignore[arg-type]
        return Answer(made[0].float().numpy())


@dataclass
class Record:
    """What one subject gave, by prompt. values [T, S] centred float64 at ids ([S], or [T, S] for top k)."""

    prompts: list[Prompt]
    ids: list[np.ndarray] = field(default_factory=list)
    values: list[F64] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)  # against the plain truth
    nulls: list[list[F64]] = field(default_factory=list)  # [realisation][prompt]: errors against the plain truth, at the same ids
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
        chosen = np.arange(v) if v <= SAMPLE else np.sort(np.random.Generator(np.random.PCG64(0)).choice(v, SAMPLE, replace=False))
        self.sample = chosen.astype(np.int64)

    def carrying(self, faults: Sequence[str]) -> GptOss:
        model = self.model
        for name in faults:
            model = find_fault(name).broken(model)
        return model

    def hidden(self, model: GptOss, prompts: Sequence[Prompt]) -> list[Tensor]:
        """[T, H] after the last norm, per prompt; prompts of one length go in one batch."""
        out: dict[int, Tensor] = {}
        for indices in _by_length(prompts):
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


def _by_length(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    lengths: dict[int, list[int]] = {}
    for i, p in enumerate(prompts):
        lengths.setdefault(len(p.ids), []).append(i)
    yield from lengths.values()


def measure(reference: Reference, prompts: Sequence[Prompt], subject: Subject, noise: Noise, tick: Callable[[], None] = lambda: None) -> Record:
    """Everything that is measured of one subject. Whatever the subject raises goes through."""
    record = Record(list(prompts))
    with torch.inference_mode():
        truth = reference.hidden(reference.model, prompts)
        nulls = [null.apply(reference.model) for null in realisations(noise)]
        names = [null.name for null in realisations(noise)]
        null_hidden = [_null_hidden(null.apply(reference.model), null.cache, prompts) for null in realisations(noise)]
        record.nulls = [[] for _ in nulls]
        record.null_positions = {name: [] for name in names}
        for i, prompt in enumerate(prompts):
            answer = subject.answer(prompt)
            ids = reference.sample if answer.ids is None else answer.ids.astype(np.int64)
            record.ids.append(ids)
            record.lower_bound |= answer.ids is not None
            z = reference.values(truth[i], ids)
            record.values.append(_values(answer, ids))
            record.positions.append(_compare(reference.model, truth[i], answer, prompt))
            for r, (null, hidden) in enumerate(zip(nulls, null_hidden, strict=True)):
                positions, values = _null(reference.model, truth[i], null, hidden[i], prompt, answer, ids)
                record.null_positions[names[r]].append(positions)
                record.nulls[r].append(values - z)
            tick()
    return record


def _null_hidden(model: GptOss, new_cache: Callable[[GptOss], object], prompts: Sequence[Prompt]) -> list[Tensor]:
    out: dict[int, Tensor] = {}
    for indices in _by_length(prompts):
        batch = model.hidden(torch.tensor([prompts[i].ids for i in indices]), cache=new_cache(model))  # type: ignore[arg-type]
        out |= dict(zip(indices, batch, strict=True))
    return [out[i] for i in range(len(prompts))]


def _pieces(model: GptOss, length: int) -> Iterator[slice]:
    step = max(1, _BLOCK // model.config.vocab_size)
    return (slice(i, i + step) for i in range(0, length, step))


def _logits(model: GptOss, hidden: Tensor) -> np.ndarray:
    made: np.ndarray = model.linear(hidden, model.unembedding, None).float().numpy()
    return made


def _compare(model: GptOss, hidden: Tensor, answer: Answer, prompt: Prompt) -> Positions:
    following = following_tokens(prompt.ids)
    parts = []
    for piece in _pieces(model, len(hidden)):
        z = _logits(model, hidden[piece])
        if answer.full is not None:
            parts.append(compare_full(z, answer.full[piece], following[piece]))
        else:
            assert answer.ids is not None and answer.logprobs is not None
            parts.append(compare_top(z, answer.ids[piece], answer.logprobs[piece], following[piece]))
    return joined(parts)


def _values(answer: Answer, ids: np.ndarray) -> F64:
    if answer.full is not None:
        return centre(answer.full[:, ids])
    assert answer.logprobs is not None
    return centre(answer.logprobs)


def _null(model: GptOss, truth: Tensor, null: GptOss, hidden: Tensor, prompt: Prompt, answer: Answer, ids: np.ndarray) -> tuple[Positions, F64]:
    """The same statistics of a null: with full logits, or with its own top k for engines that give no more."""
    following = following_tokens(prompt.ids)
    parts, values = [], []
    for piece in _pieces(model, len(hidden)):
        z, y = _logits(model, truth[piece]), _logits(null, hidden[piece])
        if answer.full is not None:
            parts.append(compare_full(z, y, following[piece]))
            values.append(centre(y[:, ids]))
            continue
        at = ids[piece]
        values.append(centre(np.take_along_axis(y, at, 1)))
        lq = y.astype(np.float64) - np.log(np.exp(y.astype(np.float64)).sum(1, keepdims=True))
        best = np.argsort(-y, 1)[:, : at.shape[1]]
        parts.append(compare_top(z, best, np.take_along_axis(lq, best, 1), following[piece]))
    return joined(parts), np.concatenate(values)
