"""The windows in a forward pass that parity looks through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Taps:
    """What a forward pass lets out, and what it lets in. Lists get one entry per layer.

    hidden: [B, T, H] after each layer; router_scores: [B, T, E] before top-k; experts: [B, T, K] int64, by falling
    score.
    forced: if given, [B, T, K] per layer: these experts are used (weighted by a softmax over their own scores).
    """

    hidden: list[Tensor] = field(default_factory=list)
    router_scores: list[Tensor] = field(default_factory=list)
    experts: list[Tensor] = field(default_factory=list)
    forced: Sequence[Tensor] | None = None
