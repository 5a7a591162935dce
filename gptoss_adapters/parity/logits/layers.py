"""From the inside, for targets with taps: the error of every layer, and the router's choices. One prompt, beside
the nulls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gptoss_adapters.backends import Backend
from gptoss_adapters.parity.logits.judge import family
from gptoss_adapters.parity.logits.measure import Reference
from gptoss_adapters.parity.logits.metrics import TINY, centre, nmse_of
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.noise.nulls import Noise, realisations
from gptoss_adapters.parity.noise.variants import logits
from gptoss_adapters.parity.report.measurements import Flip, Layers
from gptoss_adapters.parity.report.schema import FAIL, LOOK_EXCESS, PASS, Structural
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.taps import Taps

SHOWN = 200


def tapped(model: GptOss, prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hidden [L, T, H], router scores [L, T, E], experts [L, T, K]."""
    taps = Taps()
    model.hidden(torch.tensor([prompt.ids]), taps=taps)
    hidden, scores = (np.stack([x[0].double().numpy() for x in part]) for part in (taps.hidden, taps.router_scores))
    return hidden, scores, np.stack([x[0].numpy() for x in taps.experts])


def compare_layers(
    backend: Backend, reference: Reference, model: GptOss, noise: Noise, prompt: Prompt, index: int
) -> Layers:
    """model: the truth that the target is judged against."""
    truth, scores, experts = tapped(model, prompt)
    nulls = [tapped(null.apply(model), prompt) for null in list(realisations(noise))[:3]]
    seen = backend.taps(prompt.ids)
    size = np.maximum((truth**2).sum(-1), TINY)
    nmse = ((seen["hidden"] - truth) ** 2).sum(-1) / size
    floor = np.median(np.stack([((n[0] - truth) ** 2).sum(-1) / size for n in nulls]), 0)
    excess = np.median(nmse / np.maximum(floor, TINY), 1)
    allowed = 2 * float(np.quantile(np.abs(np.stack([n[1] - scores for n in nulls])), 0.999))
    made = Layers(index, nmse.tolist(), floor.tolist(), [float(x) for x in excess])
    made.onset = next((n for n, x in enumerate(made.excess) if x > LOOK_EXCESS), None)
    flipped = _flips(experts, seen["experts"])
    made.flip_rate = [float(x) for x in flipped.mean(1)]
    made.null_flip_rate = [float(x) for x in np.mean([_flips(experts, n[2]) for n in nulls], 0).mean(-1)]
    order, k = np.sort(scores, -1)[..., ::-1], experts.shape[-1]
    gaps = order[..., k - 1] - order[..., k] if k < scores.shape[-1] else np.full(flipped.shape, np.inf)
    found = [
        Flip(int(n), index, int(t), float(gaps[n, t]), allowed, bool(gaps[n, t] <= allowed))
        for n, t in np.argwhere(flipped)
    ]
    made.flips = sorted(found, key=lambda f: -f.gap)[:SHOWN]
    return made


def check_forced_routing(
    backend: Backend, reference: Reference, model: GptOss, noise: Noise, prompts: Sequence[Prompt]
) -> Structural:
    """One prompt of each family once more with the truth's experts on both sides: without flips, noise is far lower."""
    own, theirs = [], []
    nulls = [null.apply(model) for null in realisations(noise)]
    for prompt in {p.family: p for p in prompts}.values():
        experts = tapped(model, prompt)[2]
        truth = centre(logits(model, prompt.ids).numpy())
        forced = [torch.from_numpy(layer)[None] for layer in experts]
        own.append(nmse_of(truth, centre(backend.taps(prompt.ids, experts.astype(np.int32))["logits"])))
        theirs.append(
            [nmse_of(truth, centre(logits(null, prompt.ids, forced=forced).double().numpy())) for null in nulls]
        )
    found = family(np.concatenate(own), [np.concatenate(n) for n in zip(*theirs, strict=True)])
    return Structural(
        "forced routing",
        FAIL if found.verdict == FAIL else PASS,
        "the same experts, within noise",
        f"excess {found.worst:.3g}",
    )


def _flips(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    made: np.ndarray = (np.sort(a, -1) != np.sort(b, -1)).any(-1)
    return made
