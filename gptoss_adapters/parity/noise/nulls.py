"""Null implementations: the reference, changed only in what an engine is free to choose. Their distance from it is the
noise floor.

A `Noise` class says what rounding an engine does; `realisations` are several implementations with that rounding (other
summation orders, and inputs nudged by less than the rounding, which turns out other expert flips): one null is not a
floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptoss_adapters.parity.noise.attention import Round, RoundedAttention
from gptoss_adapters.parity.noise.variants import attentions, change_ops, clone, experts, moes
from gptoss_adapters.reference.linear import linear
from gptoss_adapters.reference.model import GptOss, Rope

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
QUANT = 32  # values that share a scale in Q8_0


@dataclass(frozen=True, slots=True)
class Noise:
    """What an engine rounds. compute: dtype of activations. dense, experts: how inputs of these products are rounded
    ("", "bf16", "f16", "q8_0").
    cache: type of keys and values ("f32", "f16", "bf16", "q8_0"). flash: tokens per step of a prefill with ggml's flash
    attention, 0 without it; `nulls_attention` says what these two round. Products themselves are summed in `compute`.
    """

    compute: str = "float32"
    dense: str = ""
    experts: str = ""
    cache: str = "f32"
    flash: int = 0

    def __str__(self) -> str:
        parts = [self.compute]
        parts += [f"{name} inputs {how}" for name, how in (("dense", self.dense), ("expert", self.experts)) if how]
        parts += [f"{self.cache} cache"] if self.cache != "f32" else []
        parts += ["flash attention"] if self.flash else []
        return ", ".join(parts)

    @property
    def rounds(self) -> bool:
        """Whether it is coarser than float32."""
        return bool(self.compute == "bfloat16" or self.dense or self.experts or self.cache != "f32" or self.flash)


def to_q8_0(x: Tensor) -> Tensor:
    """Rounded to blocks of 32 int8 with a scale, as ggml does with activations: the codes by the scale in float32,
    stored in float16.
    """
    blocks = x.float().unflatten(-1, (-1, QUANT))
    top = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * torch.where(top > 0, 127 / top, 0.0)).round()
    rounded: Tensor = (codes * (top / 127).half().float()).flatten(-2).to(x.dtype)
    return rounded


ROUND: dict[str, Round] = {
    "": lambda x: x,
    "f32": lambda x: x,
    "bf16": lambda x: x.bfloat16().to(x.dtype),
    "f16": lambda x: x.half().to(x.dtype),
    "q8_0": to_q8_0,
}


def split(x: Tensor, weight: Tensor, bias: Tensor | None = None, parts: int = 4) -> Tensor:
    """x [.., in] times weight [out, in], in x's dtype, the sum over the inputs in parts."""
    y: Tensor = sum(
        F.linear(a, b.to(x.dtype)) for a, b in zip(x.chunk(parts, -1), weight.chunk(parts, -1), strict=True)
    )  # type: ignore[assignment]
    return y if bias is None else y + bias.to(x.dtype)


def rounded(product: Any, how: str) -> Any:
    """A product whose input is rounded first."""
    return lambda x, weight, bias=None: product(ROUND[how](x), weight, bias)


class Rope32(Rope):
    """Angles in float32, which is what engines do: at position p they are off by about p * 2**-24."""

    def angles(self, positions: Tensor) -> Tensor:
        return positions[..., None].float() * self.inv_freq.float()


class RopeIterated(Rope):
    """... and each pair's frequency got from the last one by a float32 product, as ggml does."""

    def angles(self, positions: Tensor) -> Tensor:
        position, step = positions.float(), (self.inv_freq[1:] / self.inv_freq[:-1]).float()
        angles = [position * self.inv_freq[0].float()]
        for ratio in step:
            angles.append(angles[-1] * ratio)
        return torch.stack(angles, -1)


@dataclass(frozen=True)
class Null:
    """One realisation. Made by `realisations`; `apply` works on any variant of the reference, so on faulted ones
    too.
    """

    name: str
    noise: Noise
    product: Any = linear
    rope: type[Rope] = Rope
    nudge: float = 0.0
    seed: int = 0

    def apply(self, model: GptOss) -> GptOss:
        made = clone(model, DTYPES[self.noise.compute])
        dense, inner = rounded(self.product, self.noise.dense), rounded(self.product, self.noise.experts)
        change_ops(made, linear=dense)
        for attention in attentions(made):
            change_ops(attention, linear=dense)
            if self.noise.cache != "f32" or self.noise.flash:
                change_ops(attention, attend=RoundedAttention.of(self.noise.cache, self.noise.flash, ROUND))
        for moe in moes(made):
            # every engine keeps the router's weights, and so its inputs, in full precision
            change_ops(moe, linear=self.product)
        for layer in experts(made):
            change_ops(layer, linear=inner)
        if self.rope is not Rope:
            made.rope = self.rope(made.rope.inv_freq, made.rope.concentration)
        if self.nudge:
            made.embedding = _nudged(made.embedding, self.nudge, self.seed)
        return made


def _nudged(embedding: Tensor, size: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return embedding.double() * (1 + size * torch.randn(embedding.shape[0], 1, generator=generator))


def realisations(noise: Noise) -> Iterator[Null]:
    """Five implementations with this rounding."""
    bits = 24
    if noise.rounds:
        bits = 12 if noise.compute == "bfloat16" or "q8_0" in noise.experts else 15
    nudge = 2.0**-bits
    yield Null("plain", noise)
    yield Null("split", noise, split, Rope32)
    for seed, rope in enumerate((RopeIterated, Rope32, RopeIterated), 1):
        yield Null(f"nudged {seed}", noise, split if seed == 2 else linear, rope, nudge, seed)
