"""Adapters of the experts' fused parameters, as PEFT's `target_parameters` and Unsloth save them: flat matrices.

A is [E r, in] and B [out, r E] for a parameter [E, in, out]. Wrappers of several parameters of a module are nested:
which one a tensor is for is told by how deep it lies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gptoss_adapters.checkpoint.adapters.finding import AdapterFiles
from gptoss_adapters.checkpoint.adapters.merging import Factors, Merging
from gptoss_adapters.checkpoint.adapters.peft_config import MERGE_ELSEWHERE, PEFT, AdapterConfig
from gptoss_adapters.checkpoint.adapters.targets import Target
from gptoss_adapters.checkpoint.files import Source

FUSED = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.experts((?:\.base_layer)*)")


class FusedExperts:
    """The pairs of one adapter; `lora` are all its tensors, by module and half."""

    def __init__(
        self,
        files: AdapterFiles,
        config: AdapterConfig,
        merging: Merging,
        order: str | None,
        lora: Mapping[str, Mapping[str, Source]],
    ) -> None:
        self.files, self.config, self.merging, self.order, self.lora = files, config, merging, order, lora

    def add(self, match: re.Match[str], module: str, a: Source, b: Source, scale: float) -> None:
        """Adds the pair of one wrapper to all experts. Raises BadInput for what does not fit or is not said."""
        layer, depth = int(match[1]), match[2].count(".base_layer")
        if layer >= self.merging.config.num_hidden_layers:
            layers = self.merging.config.num_hidden_layers
            raise self.files.fail("the layer is not one of this model", a, expected=f"{layers} layers")
        at = f"model.layers.{layer}.mlp.experts"
        parameter = self._tell_parameter(at, layer, depth, a)
        which = parameter.removesuffix("_bias").removesuffix("_proj")
        if parameter.endswith("_bias"):  # [E, out]: one matrix for PEFT
            factor = self.config.factor(f"{at}.{parameter}", a.shape[0], a, scale)
            pair = Factors(self.files.read(a), self.files.read(b), factor, (a, b))
            self.merging.add(self.files, Target(f"layers.{layer}.experts.{which}.bias"), pair)
            return
        canonical = f"layers.{layer}.experts.{which}.weight"
        experts, out, width = self.merging.tensors[canonical].shape
        if a.shape[0] % experts or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise self.files.fail(
                "the number of experts does not fit the base",
                a,
                expected=f"a multiple of {experts}, the same in A and B",
                got=f"{a.shape[0]}, {b.shape[1]}",
            )
        rank = a.shape[0] // experts
        swapped = self._is_swapped(at, (a, b), out, width)
        left = self.files.read(a).reshape(experts, rank, -1)
        columns = self.files.read(b)
        if self._tell_order(a, experts, rank) == PEFT:
            right = columns.reshape(-1, rank, experts).transpose(2, 0, 1)
        else:
            right = columns.reshape(-1, experts, rank).transpose(1, 0, 2)
        if swapped:
            left, right = right.swapaxes(1, 2), left.swapaxes(1, 2)
        factor = self.config.factor(f"{at}.{parameter}", rank, a, scale)
        self.merging.add(self.files, Target(canonical), Factors(left, right, factor, (a, b)))

    def _tell_parameter(self, at: str, layer: int, depth: int, a: Source) -> str:
        """By target_parameters, where the innermost wrapper is the first; files that name none wrap gate_up inside."""
        named = self.config.list_wrapped(layer)
        deepest = max(d for d in range(8) if d == depth or at + ".base_layer" * d in self.lora)
        if not named and deepest == 1:
            named = ["gate_up_proj", "down_proj"]
        if len(named) != deepest + 1:
            raise self.files.fail(
                "which of the experts' parameters it is for is not said",
                a,
                expected=f"target_parameters that name {deepest + 1} of this layer",
                got=self.config.values.get("target_parameters"),
            )
        return named[deepest - depth]

    def _is_swapped(self, at: str, pair: tuple[Source, Source], out: int, width: int) -> bool:
        """Whether A indexes the output axis: a pair of PEFT and transformers that disagreed about `is_transposed`.

        Shapes say it, for down_proj those of gate_up_proj when hidden and intermediate size are equal.
        """
        a, b = pair
        ends = (a.shape[1], b.shape[0])
        plain, swapped = ends == (width, out), ends == (out, width)
        if not plain and not swapped:
            raise self.files.fail(
                "the shapes do not fit the base",
                a,
                expected=f"A [E r, {width}], B [{out}, r E]",
                got=f"{list(a.shape)}, {list(b.shape)}",
            )
        if plain != swapped:
            return swapped
        other = self.lora.get(f"{at}.base_layer", {}).get("A")
        both = 2 * self.merging.config.intermediate_size
        if other is None or self.merging.config.hidden_size == both:
            raise self.files.fail(
                "which axis is which cannot be told: hidden and intermediate size are equal and there is no "
                "adapter of gate_up_proj",
                a,
                hint=MERGE_ELSEWHERE,
            )
        return bool(other.shape[1] == both)

    def _tell_order(self, a: Source, experts: int, rank: int) -> str:
        if rank == 1 or experts == 1:
            return PEFT
        return self.order or self.config.tell_order(a)
