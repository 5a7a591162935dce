"""What rounded YaRN bounds cost: the rotation's error at each position, computed, and its effect on the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from gptoss_adapters.parity.faults.table import find_fault
from gptoss_adapters.parity.logits.measure import Reference
from gptoss_adapters.parity.logits.metrics import nmse_of
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.report.schema import AngleError
from gptoss_adapters.reference.model import yarn_inverse_frequencies

POSITIONS = (1, 2, 4, 8, 16, 48, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def measure_angle_error(reference: Reference, prompts: Sequence[Prompt]) -> AngleError | None:
    """Computed for the checkpoint's own rotation, in radians; measured on the longest prompt: the reference's logits
    with and without rounding. None where the bounds are rounded anyway.
    """
    fault = find_fault("yarn_truncate")
    if not fault.applies(reference.model):
        return None
    exact, rounded = reference.config, replace(reference.config, yarn_truncate=True)
    gap = float((yarn_inverse_frequencies(rounded) - yarn_inverse_frequencies(exact)).abs().max())
    positions = [p for p in POSITIONS if p <= max(exact.max_position_embeddings, 2)]
    prompt = max(prompts, key=lambda p: len(p.ids))
    with torch.inference_mode():
        models = (reference.model, fault.apply(reference.model))
        z, y = (reference.values(reference.hidden(m, [prompt])[0], reference.sample) for m in models)
    return AngleError(
        positions,
        [gap * p for p in positions],
        bounds=list(exact.yarn_bounds()),
        rounded=[float(b) for b in rounded.yarn_bounds()],
        measured_positions=list(range(len(z))),
        measured_nmse=[float(x) for x in nmse_of(z, y)],
    )
