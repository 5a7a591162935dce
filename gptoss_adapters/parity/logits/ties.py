"""Ties in the router. Where two experts' scores differ by less than rounding, an engine may honestly take the other
one, and that position is then far from the truth. Five nulls may all miss such a position; so when a family fails by
few positions alone, it is measured again beside nulls that draw lots wherever the scores are as near as this run's
rounding leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gptoss_adapters.parity.logits.metrics import F64
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.noise.nulls import Noise, realisations
from gptoss_adapters.parity.noise.variants import by_length, change_ops, moes
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.taps import Taps

DRAWS = 16  # nulls: a tie that goes either way evenly is missed by all of them once in 65,000
SPREAD = 6.0  # standard deviations of a score's rounding error within which two scores are a tie
_TO_SIGMA = 1.4826  # of the median absolute error, which no flip in an earlier layer moves


@dataclass
class Ties:
    """model: the plain truth; ids and truth: of each prompt, as in the record. Nulls are made when a family is
    first asked for.
    """

    model: GptOss
    noise: Noise
    prompts: list[Prompt]
    ids: list[np.ndarray]
    truth: list[F64]
    made: dict[str, F64] = field(default_factory=dict)

    def energy(self, family: str) -> F64:
        """Squared errors of DRAWS nulls at the family's positions, [DRAWS, n]."""
        if family not in self.made:
            self.made[family] = self._measured([i for i, p in enumerate(self.prompts) if p.family == family])
        return self.made[family]

    @torch.inference_mode()
    def _measured(self, chosen: list[int]) -> F64:
        from gptoss_adapters.parity.logits.measure import values_at

        prompts = [self.prompts[i] for i in chosen]
        nulls = list(realisations(self.noise))
        widths = SPREAD * score_noise(self.model, [null.apply(self.model) for null in nulls[2:]], prompts)
        out = []
        for draw in range(DRAWS):
            made = drawing_lots(nulls[1 + draw % (len(nulls) - 1)].apply(self.model), widths, draw)
            hidden = _hidden(made, prompts)
            out.append(
                np.concatenate(
                    [
                        ((values_at(made, h, self.ids[i]) - self.truth[i]) ** 2).sum(-1)
                        for i, h in zip(chosen, hidden, strict=True)
                    ]
                )
            )
        return np.stack(out)


def score_noise(model: GptOss, nulls: Sequence[GptOss], prompts: Sequence[Prompt]) -> F64:
    """Standard deviation of the rounding error of the router's scores, per layer."""
    errors: list[list[np.ndarray]] = [[] for _ in model.layers]
    for at in by_length([p.ids for p in prompts]):
        ids = torch.tensor([prompts[i].ids for i in at])
        truth = _scores(model, ids)
        for null in nulls:
            for layer, (a, b) in enumerate(zip(_scores(null, ids), truth, strict=True)):
                errors[layer].append((a.double() - b.double()).abs().flatten().numpy())
    return np.array([_TO_SIGMA * float(np.median(np.concatenate(e))) for e in errors])


def _scores(model: GptOss, ids: Tensor) -> list[Tensor]:
    taps = Taps()
    model.hidden(ids, taps=taps)
    return taps.router_scores


def _hidden(model: GptOss, prompts: Sequence[Prompt]) -> list[Tensor]:
    out: dict[int, Tensor] = {}
    for at in by_length([p.ids for p in prompts]):
        out |= dict(zip(at, model.hidden(torch.tensor([prompts[i].ids for i in at])), strict=True))
    return [out[i] for i in range(len(prompts))]


def drawing_lots(model: GptOss, widths: F64, seed: int) -> GptOss:
    """Changes a copy: scores that are less than `widths[layer]` apart may change places when experts are chosen,
    not when they are weighed.
    """
    generator = torch.Generator().manual_seed(seed)
    for moe, width in zip(moes(model), widths, strict=True):
        change_ops(moe, choose=partial(_choose, float(width), generator))
    return model


def _choose(width: float, generator: torch.Generator, scores: Tensor, k: int) -> Tensor:
    lots = torch.rand(scores.shape, generator=generator, dtype=torch.float64) - 0.5
    return (scores.double() + width * lots).topk(k, dim=-1, sorted=True).indices
