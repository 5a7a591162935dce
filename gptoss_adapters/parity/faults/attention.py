"""The faults of window, sinks, RoPE, attention, dense biases and norms, and the negative control."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.noise.variants import attentions, set_config
from gptoss_adapters.reference.model import GptOss, Rope, yarn_inverse_frequencies
from gptoss_adapters.spec import FULL, SLIDING

# Window ---------------------------------------------------------------------------------------------------------------


class WindowFault(Fault):
    part = "window"

    def change(self, model: GptOss) -> None:
        config = model.config
        for n, (attention, kind) in enumerate(zip(attentions(model), config.layer_types, strict=True)):
            attention.window = self.window(kind, config.window_of(n) or config.sliding_window)

    @abstractmethod
    def window(self, kind: str, size: int) -> int | None: ...

    def applies(self, model: GptOss) -> bool:
        kinds, size = model.config.layer_types, model.config.sliding_window
        return any(self.window(kind, size) != (size if kind == SLIDING else None) for kind in kinds)


class WinPlus1(WindowFault):
    number = 1
    name = "win_plus1"
    what = "sliding window keeps W+1 keys"

    def window(self, kind: str, size: int) -> int | None:
        return size + 1 if kind == SLIDING else None


class WinMinus1(WindowFault):
    number = 2
    name = "win_minus1"
    what = "sliding window keeps W-1 keys"

    def window(self, kind: str, size: int) -> int | None:
        return max(size - 1, 1) if kind == SLIDING else None


class WinParity(WindowFault):
    number = 3
    name = "win_parity"
    what = "sliding and full layers exchanged"

    def window(self, kind: str, size: int) -> int | None:
        return size if kind == FULL else None


class WinAll(WindowFault):
    number = 4
    name = "win_all"
    what = "every layer sliding"

    def window(self, kind: str, size: int) -> int | None:
        return size


class WinNone(WindowFault):
    number = 5
    name = "win_none"
    what = "no layer sliding"

    def window(self, kind: str, size: int) -> int | None:
        return None


# Sinks ----------------------------------------------------------------------------------------------------------------


class _Sinks(Fault):
    part = "sinks"

    def change(self, model: GptOss) -> None:
        for attention in attentions(model):
            attention.w["sinks"] = self.sinks(attention.w["sinks"].double(), model.config.head_dim)

    @abstractmethod
    def sinks(self, s: Tensor, head_dim: int) -> Tensor: ...


class SinkDrop(_Sinks):
    number = 6
    name = "sink_drop"
    what = "sink term missing from the softmax denominator"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return torch.full_like(s, -torch.inf)


class SinkZero(_Sinks):
    number = 7
    name = "sink_zero"
    what = "sink logits set to 0"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return torch.zeros_like(s)


class SinkRoll(_Sinks):
    number = 8
    name = "sink_roll"
    what = "sinks shifted by one head"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return s.roll(1)


class SinkScaled(_Sinks):
    number = 9
    name = "sink_scaled"
    what = "sinks multiplied by 1/sqrt(head_dim)"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return s * (1 / math.sqrt(head_dim))


# RoPE -----------------------------------------------------------------------------------------------------------------


class RopeFault(Fault):
    part = "RoPE"

    def change(self, model: GptOss) -> None:
        before = model.rope.inv_freq.shape
        self.rope(model)
        assert model.rope.inv_freq.shape == before

    @abstractmethod
    def rope(self, model: GptOss) -> None: ...

    def applies(self, model: GptOss) -> bool:
        return model.config.uses_yarn


class NoYarn(RopeFault):
    number = 10
    name = "no_yarn"
    what = "plain RoPE: no YaRN, no concentration"

    def rope(self, model: GptOss) -> None:
        plain = replace(model.config, rope_scaling_factor=1.0, attention_factor=None)
        model.rope = Rope.from_config(plain, model.device)


class NoYarnConc(RopeFault):
    number = 11
    name = "no_yarn_conc"
    what = "YaRN's concentration factor is 1"

    def rope(self, model: GptOss) -> None:
        model.rope = replace(model.rope, concentration=1.0)


class YarnTruncate(RopeFault):
    number = 12
    name = "yarn_truncate"
    what = "YaRN's ramp bounds rounded (truncate)"

    def rope(self, model: GptOss) -> None:
        model.config = replace(model.config, yarn_truncate=True)
        model.rope = Rope.from_config(model.config, model.device)

    def applies(self, model: GptOss) -> bool:
        return model.config.uses_yarn and not model.config.yarn_truncate


class LinearInterp(RopeFault):
    number = 13
    name = "linear_interp"
    what = "every frequency divided by the factor (linear interpolation)"

    def rope(self, model: GptOss) -> None:
        plain = yarn_inverse_frequencies(replace(model.config, rope_scaling_factor=1.0))
        model.rope = replace(model.rope, inv_freq=(plain / model.config.rope_scaling_factor).to(model.device))


class YarnFactorX2(RopeFault):
    number = 14
    name = "yarn_factor_x2"
    what = "YaRN's factor doubled in the frequencies (concentration unchanged)"

    def rope(self, model: GptOss) -> None:
        doubled = replace(model.config, rope_scaling_factor=2 * model.config.rope_scaling_factor)
        model.rope = replace(model.rope, inv_freq=yarn_inverse_frequencies(doubled).to(model.device))


class RopeInterleaved(Fault):
    """Scores see q and k only in their product, so rotating neighbouring pairs is rotating halves of reordered rows."""

    number = 15
    name = "rope_interleaved"
    part = "RoPE"
    what = "neighbouring pairs rotated instead of halves"

    def change(self, model: GptOss) -> None:
        for attention in attentions(model):
            for leaf in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
                w = attention.w[leaf]
                heads = w.view(-1, model.config.head_dim, *w.shape[1:])
                attention.w[leaf] = torch.cat((heads[:, ::2], heads[:, 1::2]), 1).reshape(w.shape)


# Attention ------------------------------------------------------------------------------------------------------------


class GqaTile(Fault):
    """Query head h reads key head h mod n_kv: the same as reordered query heads."""

    number = 16
    name = "gqa_tile"
    part = "attention"
    what = "key heads tiled instead of repeated"

    def change(self, model: GptOss) -> None:
        c = model.config
        order = torch.arange(c.num_attention_heads).view(-1, c.num_key_value_heads).T.flatten()
        for attention in attentions(model):
            w = attention.w
            for leaf in ("q_proj.weight", "q_proj.bias"):
                w[leaf] = (
                    w[leaf].view(c.num_attention_heads, c.head_dim, *w[leaf].shape[1:])[order].reshape(w[leaf].shape)
                )
            o = w["o_proj.weight"]
            w["o_proj.weight"] = o.view(len(o), c.num_attention_heads, c.head_dim)[:, order].reshape(o.shape)
            w["sinks"] = w["sinks"][order]

    def applies(self, model: GptOss) -> bool:
        return 1 < model.config.num_key_value_heads < model.config.num_attention_heads


class BiasDropFault(Fault):
    part = "bias"
    leaves: ClassVar[tuple[str, ...]]

    def change(self, model: GptOss) -> None:
        for part in (p for pair in model.layers for p in pair):
            for leaf in self.leaves:
                if leaf in part.w:
                    part.w[leaf] = torch.zeros_like(part.w[leaf])


class QkvBiasDrop(BiasDropFault):
    number = 17
    name = "qkv_bias_drop"
    what = "q, k and v biases dropped"
    leaves = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


class KBiasDrop(BiasDropFault):
    number = 18
    name = "k_bias_drop"
    what = "k bias dropped"
    leaves = ("k_proj.bias",)


class OBiasDrop(BiasDropFault):
    number = 19
    name = "o_bias_drop"
    what = "attention output bias dropped"
    leaves = ("o_proj.bias",)


class RouterBiasDrop(BiasDropFault):
    number = 20
    name = "router_bias_drop"
    what = "router bias dropped"
    leaves = ("router.bias",)


# Norm -----------------------------------------------------------------------------------------------------------------


class _Eps(Fault):
    part = "norm"
    eps: ClassVar[float]

    def change(self, model: GptOss) -> None:
        set_config(model, rms_norm_eps=self.eps)

    def applies(self, model: GptOss) -> bool:
        return model.config.rms_norm_eps != self.eps


class Eps1e4(_Eps):
    number = 39
    name = "eps_1e-4"
    what = "RMSNorm eps 1e-4 instead of 1e-5"
    eps = 1e-4


class Eps1e6(_Eps):
    number = 40
    name = "eps_1e-6"
    what = "RMSNorm eps 1e-6 instead of 1e-5"
    eps = 1e-6


class FinalNormNoGain(Fault):
    number = 41
    name = "final_norm_nogain"
    part = "norm"
    what = "final norm's gain dropped"

    def change(self, model: GptOss) -> None:
        model.norm = torch.ones_like(model.norm)


class _ShiftedRope(Rope):
    def angles(self, positions: Tensor) -> Tensor:
        return super().angles(positions + 1)


class PosPlus1(Fault):
    """The negative control: attention sees only differences of positions, so this must stay invisible."""

    name = "pos_plus1"
    part = "control"
    what = "absolute positions + 1: must be invisible"

    def change(self, model: GptOss) -> None:
        model.rope = _ShiftedRope(model.rope.inv_freq, model.rope.concentration)
