"""What files get wrong beyond the 41 faults: further suspects for the attribution, not part of the certificate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from gptoss_adapters.parity.faults.attention import BiasDropFault, RopeFault, WindowFault
from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.noise.variants import attentions
from gptoss_adapters.reference.model import GptOss, Rope
from gptoss_adapters.spec import SLIDING


class WinDouble(WindowFault):
    name, what = "win_double", "sliding window of twice the size"

    def window(self, kind: str, size: int) -> int | None:
        return 2 * size if kind == SLIDING else None


class YarnFactorFile(RopeFault):
    name, what = "yarn_factor_file", "YaRN's factor doubled, concentration included, as a wrong config makes it"

    def rope(self, model: GptOss) -> None:
        doubled = replace(model.config, rope_scaling_factor=2 * model.config.rope_scaling_factor)
        model.rope = Rope.from_config(doubled, model.device)


class QBiasDrop(BiasDropFault):
    name, what = "q_bias_drop", "q bias dropped"
    leaves = ("q_proj.bias",)


class VBiasDrop(BiasDropFault):
    name, what = "v_bias_drop", "v bias dropped"
    leaves = ("v_proj.bias",)


class LayersExchanged(Fault):
    """The weights of two layers, each in the other's place; a layer's window belongs to its place."""

    name = "layers_exchanged"
    part = "layers"
    what = "the weights of two layers exchanged"

    def __init__(self, first: int = 0, second: int = 1) -> None:
        self.first, self.second = first, second

    def change(self, model: GptOss) -> None:
        i, j = self.first, self.second
        windows = [attention.window for attention in attentions(model)]
        model.layers[i], model.layers[j] = model.layers[j], model.layers[i]
        for attention, window in zip(attentions(model), windows, strict=True):
            attention.window = window

    def applies(self, model: GptOss) -> bool:
        return max(self.first, self.second) < len(model.layers)

    @property
    def label(self) -> str:
        return f"the weights of layers {self.first} and {self.second} exchanged"


def file_faults(layers: int = 2) -> Iterator[Fault]:
    """All of them, for a model of this many layers; of deep models only neighbours are exchanged."""
    yield from (WinDouble(), YarnFactorFile(), QBiasDrop(), VBiasDrop())
    pairs = combinations(range(layers), 2) if layers <= 6 else ((n, n + 1) for n in range(layers - 1))
    yield from (LayersExchanged(*pair) for pair in pairs)
