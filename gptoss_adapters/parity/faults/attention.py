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
        for attention, kind in zip(attentions(model), model.config.layer_types, strict=True):
            attention.window = self.window(kind, model.config.sliding_window)

    @abstractmethod
    def window(self, kind: str, size: int) -> int | None: ...

    def applies(self, model: GptOss) -> bool:
        kinds, size = model.config.layer_types, model.config.sliding_window
        return any(self.window(kind, size) != (size if kind == SLIDING else None) for kind in kinds)


class WinPlus1(WindowFault):
    number, name, what = 1, "win_plus1", "sliding window keeps W+1 keys"

    def window(self, kind: str, size: int) -> int | None:
        return size + 1 if kind == SLIDING else None


class WinMinus1(WindowFault):
    number, name, what = 2, "win_minus1", "sliding window keeps W-1 keys"

    def window(self, kind: str, size: int) -> int | None:
        return max(size - 1, 1) if kind == SLIDING else None


class WinParity(WindowFault):
    number, name, what = 3, "win_parity", "sliding and full layers exchanged"

    def window(self, kind: str, size: int) -> int | None:
        return size if kind == FULL else None


class WinAll(WindowFault):
    number, name, what = 4, "win_all", "every layer sliding"

    def window(self, kind: str, size: int) -> int | None:
        return size


class WinNone(WindowFault):
    number, name, what = 5, "win_none", "no layer sliding"

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
    number, name, what = 6, "sink_drop", "sink term missing from the softmax denominator"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return torch.full_like(s, -torch.inf)


class SinkZero(_Sinks):
    number, name, what = 7, "sink_zero", "sink logits set to 0"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return torch.zeros_like(s)


class SinkRoll(_Sinks):
    number, name, what = 8, "sink_roll", "sinks shifted by one head"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return s.roll(1)


class SinkScaled(_Sinks):
    number, name, what = 9, "sink_scaled", "sinks multiplied by 1/sqrt(head_dim)"

    def sinks(self, s: Tensor, head_dim: int) -> Tensor:
        return s * (1 / math.sqrt(head_dim))


# RoPE -----------------------------------------------------------------------------------------------------------------


class RopeFault(Fault):
    part = "RoPE"

    def change(self, model: GptOss) -> None:
        before = model.rope.inv_freq.clone(), model.rope.concentration
        self.rope(model)
        assert model.rope.inv_freq.shape == before[0].shape

    @abstractmethod
    def rope(self, model: GptOss) -> None: ...

    def applies(self, model: GptOss) -> bool:
        return model.config.uses_yarn


class NoYarn(RopeFault):
    number, name, what = 10, "no_yarn", "plain RoPE: no YaRN, no concentration"

    def rope(self, model: GptOss) -> None:
        model.rope = Rope(replace(model.config, rope_scaling_factor=1.0, attention_factor=None), model.device)


class NoYarnConc(RopeFault):
    number, name, what = 11, "no_yarn_conc", "YaRN's concentration factor is 1"

    def rope(self, model: GptOss) -> None:
        model.rope.concentration = 1.0


class YarnTruncate(RopeFault):
    number, name, what = 12, "yarn_truncate", "YaRN's ramp bounds rounded (truncate)"

    def rope(self, model: GptOss) -> None:
        model.config = replace(model.config, yarn_truncate=True)
        model.rope = Rope(model.config, model.device)

    def applies(self, model: GptOss) -> bool:
        return model.config.uses_yarn and not model.config.yarn_truncate


class LinearInterp(RopeFault):
    number, name, what = 13, "linear_interp", "every frequency divided by the factor (linear interpolation)"

    def rope(self, model: GptOss) -> None:
        plain = yarn_inverse_frequencies(replace(model.config, rope_scaling_factor=1.0))
        model.rope.inv_freq = (plain / model.config.rope_scaling_factor).to(model.device)


class YarnFactorX2(RopeFault):
    number, name, what = 14, "yarn_factor_x2", "YaRN's factor doubled in the frequencies (concentration unchanged)"

    def rope(self, model: GptOss) -> None:
        doubled = replace(model.config, rope_scaling_factor=2 * model.config.rope_scaling_factor)
        model.rope.inv_freq = yarn_inverse_frequencies(doubled).to(model.device)


class RopeInterleaved(Fault):
    """Scores see q and k only in their product, so rotating neighbouring pairs is rotating halves of reordered rows."""

    number, name, part, what = 15, "rope_interleaved", "RoPE", "neighbouring pairs rotated instead of halves"

    def change(self, model: GptOss) -> None:
        for attention in attentions(model):
            for leaf in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"):
                w = attention.w[leaf]
                heads = w.view(-1, model.config.head_dim, *w.shape[1:])
                attention.w[leaf] = torch.cat((heads[:, ::2], heads[:, 1::2]), 1).reshape(w.shape)


# Attention ------------------------------------------------------------------------------------------------------------


class GqaTile(Fault):
    """Query head h reads key head h mod n_kv: the same as reordered query heads."""

    number, name, part, what = 16, "gqa_tile", "attention", "key heads tiled instead of repeated"

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
    number, name, what = 17, "qkv_bias_drop", "q, k and v biases dropped"
    leaves = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


class KBiasDrop(BiasDropFault):
    number, name, what = 18, "k_bias_drop", "k bias dropped"
    leaves = ("k_proj.bias",)


class OBiasDrop(BiasDropFault):
    number, name, what = 19, "o_bias_drop", "attention output bias dropped"
    leaves = ("o_proj.bias",)


class RouterBiasDrop(BiasDropFault):
    number, name, what = 20, "router_bias_drop", "router bias dropped"
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
    number, name, what, eps = 39, "eps_1e-4", "RMSNorm eps 1e-4 instead of 1e-5", 1e-4


class Eps1e6(_Eps):
    number, name, what, eps = 40, "eps_1e-6", "RMSNorm eps 1e-6 instead of 1e-5", 1e-6


class FinalNormNoGain(Fault):
    number, name, part, what = 41, "final_norm_nogain", "norm", "final norm's gain dropped"

    def change(self, model: GptOss) -> None:
        model.norm = torch.ones_like(model.norm)


class _ShiftedRope(Rope):
    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return super().tables(positions + 1, dtype)


class PosPlus1(Fault):
    """The negative control: attention sees only differences of positions, so this must stay invisible."""

    name, part, what = "pos_plus1", "control", "absolute positions + 1: must be invisible"

    def change(self, model: GptOss) -> None:
        model.rope.__class__ = _ShiftedRope
