"""The faults of router, MXFP4 codec, SwiGLU and expert biases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.noise.variants import change_ops, experts, moes, set_config
from gptoss_adapters.reference.experts import OracleExperts, decode
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.reference.model import GptOss

# Router ---------------------------------------------------------------------------------------------------------------


class SoftmaxBeforeTopk(Fault):
    number = 21
    name = "softmax_before_topk"
    part = "router"
    what = "softmax over all experts, then top-k, not renormalised"

    def change(self, model: GptOss) -> None:
        for moe in moes(model):
            change_ops(moe, weigh=lambda scores, chosen: scores.softmax(-1).gather(-1, chosen))


class TopkMinus1(Fault):
    """Under forced routing too: the last of the forced experts gets no weight."""

    number = 22
    name = "topk_minus1"
    part = "router"
    what = "one expert fewer per token"

    def change(self, model: GptOss) -> None:
        def weigh(scores: Tensor, chosen: Tensor) -> Tensor:
            top = scores.gather(-1, chosen)
            lowest = top.min(-1, keepdim=True).values
            return top.masked_fill(top == lowest, -torch.inf).softmax(-1)

        for moe in moes(model):
            change_ops(moe, weigh=weigh)

    def applies(self, model: GptOss) -> bool:
        return model.config.experts_per_token > 1


class SigmoidGate(Fault):
    number = 23
    name = "sigmoid_gate"
    part = "router"
    what = "renormalised sigmoid instead of softmax"

    def change(self, model: GptOss) -> None:
        def weigh(scores: Tensor, chosen: Tensor) -> Tensor:
            gate = scores.gather(-1, chosen).sigmoid()
            return gate / gate.sum(-1, keepdim=True)

        for moe in moes(model):
            change_ops(moe, weigh=weigh)


# MXFP4 ----------------------------------------------------------------------------------------------------------------

Reader = Callable[[int, torch.dtype], Tensor]  # an expert's weight in a dtype
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (blocks [.., G, 16], scales [.., G]) -> the same, misread


def misread(
    layer: OracleExperts, model: GptOss, index: int, name: str, change: Change, only: int | None = None
) -> None:
    """Make one layer's tensor `name` be read through `change`; `only`: of one expert."""
    right, checkpoint = layer.weights[name], model.checkpoint

    def read(expert: int, dtype: torch.dtype) -> Tensor:
        if only is not None and expert != only:
            return right(expert, dtype)
        blocks, scales = checkpoint.mxfp4(f"layers.{index}.experts.{name}.weight", expert)
        return decode(*change(as_tensor(blocks).clone(), as_tensor(scales).clone()), dtype)

    layer.weights[name] = read


class _Codec(Fault):
    part = "MXFP4"

    def change(self, model: GptOss) -> None:
        for index, layer in enumerate(experts(model)):
            for name in layer.weights:
                misread(layer, model, index, name, self.misread)

    @abstractmethod
    def misread(self, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]: ...

    def applies(self, model: GptOss) -> bool:
        return packed(model)


def packed(model: GptOss) -> bool:
    return model.checkpoint.tensors["layers.0.experts.gate_up.weight"].encoding == "mxfp4"


class NibbleSwap(_Codec):
    number = 24
    name = "nibble_swap"
    what = "low and high nibble of each byte exchanged"

    def misread(self, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return (blocks << 4) | (blocks >> 4), scales


class NibbleGgmlHalf(_Codec):
    number = 25
    name = "nibble_ggml_half"
    what = "low nibbles read as the first half of a block, high ones as the second"

    def misread(self, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        codes = torch.cat((blocks & 15, blocks >> 4), -1)
        return codes[..., ::2] | (codes[..., 1::2] << 4), scales


class ScaleOff1(_Codec):
    number = 26
    name = "scale_off1"
    what = "scale exponents off by one"

    def misread(self, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return blocks, scales - 1


class ScaleShift1Block(_Codec):
    number = 27
    name = "scale_shift1block"
    what = "scales taken from the neighbouring block"

    def misread(self, blocks: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        return blocks, scales.roll(1, -1)

    def applies(self, model: GptOss) -> bool:
        return packed(model) and min(model.config.hidden_size, model.config.intermediate_size) > 32


class Fp4LutHalf(Fault):
    number = 28
    name = "fp4_lut_half"
    part = "MXFP4"
    what = "the FP4 table's 6 read as 5"

    def change(self, model: GptOss) -> None:
        for index, layer in enumerate(experts(model)):
            for name in layer.weights:
                layer.weights[name] = self._reader(model, f"layers.{index}.experts.{name}.weight")

    @staticmethod
    def _reader(model: GptOss, name: str) -> Reader:
        def read(expert: int, dtype: torch.dtype) -> Tensor:
            blocks, scales = (as_tensor(part) for part in model.checkpoint.mxfp4(name, expert))
            values = decode(blocks, scales, torch.float64)
            codes = torch.stack((blocks & 7, (blocks >> 4) & 7), -1).view_as(values)
            return torch.where(codes == 7, values / 6 * 5, values).to(dtype)

        return read

    def applies(self, model: GptOss) -> bool:
        return packed(model)


class W1ScaleOff1OneExpert(Fault):
    number = 29
    name = "w1_scale_off1_1expert"
    part = "MXFP4"
    what = "mlp1 of one expert off by one scale step"

    def __init__(self, layer: int = 0, expert: int = 0, step: int = -1) -> None:
        self.layer = layer
        self.expert = expert
        self.step = step

    def change(self, model: GptOss) -> None:
        layer = list(experts(model))[self.layer]
        misread(
            layer, model, self.layer, "gate_up", lambda blocks, scales: (blocks, scales + self.step), only=self.expert
        )

    def applies(self, model: GptOss) -> bool:
        return packed(model) and self.layer < len(model.layers) and self.expert < model.config.experts_of(self.layer)

    @property
    def label(self) -> str:
        return f"mlp1 scales of layer {self.layer}, expert {self.expert} off by {self.step:+d}"


# SwiGLU ---------------------------------------------------------------------------------------------------------------


def _take_rows(read: Reader, order: Tensor) -> Reader:
    return lambda expert, dtype: read(expert, dtype)[order]


class _Rows(Fault):
    """gate_up's rows in another order."""

    part = "SwiGLU"

    def change(self, model: GptOss) -> None:
        order = self.order(2 * model.config.intermediate_size)
        for layer in experts(model):
            layer.weights["gate_up"] = _take_rows(layer.weights["gate_up"], order)
            layer.biases["gate_up"] = layer.biases["gate_up"][:, order]

    @abstractmethod
    def order(self, rows: int) -> Tensor: ...


class GateUpSwap(_Rows):
    number = 30
    name = "gate_up_swap"
    what = "gate and up exchanged"

    def order(self, rows: int) -> Tensor:
        return torch.arange(rows).view(-1, 2).flip(1).flatten()


class GateUpHalf(_Rows):
    number = 31
    name = "gate_up_half"
    what = "gate and up read as halves instead of interleaved"

    def order(self, rows: int) -> Tensor:
        return torch.arange(rows).view(2, -1).T.flatten()


class NoClamp(Fault):
    number = 32
    name = "no_clamp"
    part = "SwiGLU"
    what = "no clamp at all"

    def change(self, model: GptOss) -> None:
        set_config(model, swiglu_limit=torch.inf)


class _Activation(Fault):
    part = "SwiGLU"

    def change(self, model: GptOss) -> None:
        for layer in experts(model):
            change_ops(layer, swiglu=lambda h, alpha, limit: self.activate(h[..., ::2], h[..., 1::2], alpha, limit))

    @abstractmethod
    def activate(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor: ...


def _gated(gate: Tensor, up: Tensor, alpha: float) -> Tensor:
    return gate * torch.sigmoid(alpha * gate) * up


class ClampGluBoth(_Activation):
    number = 33
    name = "clamp_glu_both"
    what = "gate clamped below as well as above"

    def activate(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        return _gated(gate.clamp(-limit, limit), up.clamp(-limit, limit) + 1, alpha)


class ClampGluOnly(_Activation):
    number = 34
    name = "clamp_glu_only"
    what = "gate clamped, up not"

    def activate(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        return _gated(gate.clamp(max=limit), up + 1, alpha)


class Alpha1(Fault):
    number = 35
    name = "alpha_1"
    part = "SwiGLU"
    what = "alpha 1 instead of 1.702"

    def change(self, model: GptOss) -> None:
        set_config(model, swiglu_alpha=1.0)


class NoPlus1(_Activation):
    number = 36
    name = "no_plus1"
    what = "no (+1) on up"

    def activate(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        return _gated(gate.clamp(max=limit), up.clamp(-limit, limit), alpha)


# Expert biases --------------------------------------------------------------------------------------------------------


class _ExpertBias(Fault):
    part = "bias"
    tensor: ClassVar[str]

    def change(self, model: GptOss) -> None:
        for layer in experts(model):
            layer.biases[self.tensor] = torch.zeros_like(layer.biases[self.tensor])


class Mlp1BiasDrop(_ExpertBias):
    number = 37
    name = "mlp1_bias_drop"
    what = "mlp1 bias dropped"
    tensor = "gate_up"


class Mlp2BiasDrop(_ExpertBias):
    number = 38
    name = "mlp2_bias_drop"
    what = "mlp2 bias dropped"
    tensor = "down"
