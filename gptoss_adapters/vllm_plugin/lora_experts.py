"""LoRA on experts that our layers compute on a CPU.

vLLM's manager stacks, slices (tensor and expert parallel) and copies the matrices as for its GPU kernels; what is ours
is the product. The tokens of requests with an adapter are computed once more, expert by expert, in float32:

    h = W13 x + b13 + B13 A13 x;    y = W2 swiglu(h) + b2 + B2 A2 swiglu(h)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.lora.layers import FusedMoE3DWithLoRA as Builtin
from vllm.lora.layers.base import BaseLayerWithLoRA

from gptoss_adapters.reference.experts import group_by_expert
from gptoss_adapters.reference.model import swiglu
from gptoss_adapters.vllm_plugin.experts import DenseExperts, NativeExperts


class FusedMoE3DWithLoRA(Builtin):
    """A gpt-oss expert layer with adapters. The name is vLLM's: its manager makes warm-up adapters by it."""

    method: NativeExperts | DenseExperts

    def __init__(self, base_layer: Any) -> None:
        BaseLayerWithLoRA.__init__(self)  # vLLM's own asks for one of its kernels
        self.base_layer = base_layer
        self.moe_config = base_layer.moe_config
        self._ep_check()
        routed = base_layer.routed_experts
        routed.lora_base_layer_prefix = "base_layer."
        parallel = self.moe_config.moe_parallel_config
        self.tp_size, self.tp_rank = parallel.tp_size, parallel.tp_rank
        self.device = torch.device("cpu")
        self.enable_moe_shared_loras = False
        self._w13_slices = 1
        # Not as attributes: some methods are modules, and modules must not hold each other.
        self.__dict__["method"] = routed.quant_method

    @staticmethod
    def takes(layer: Any) -> bool:
        """Whether the layer's experts are ours, and every token in it is one of this rank's batch, at its place."""
        parallel = layer.moe_config.moe_parallel_config
        routed = layer.routed_experts
        ours = isinstance(routed.quant_method, NativeExperts | DenseExperts)
        if not ours or getattr(routed.quant_method, "standard", False) or parallel.dp_size > 1:
            return False
        inter = routed.w13_bias.shape[1] // 2  # with padding, which the ranks' slices of adapters do not have
        return bool(parallel.tp_size == 1 or inter == layer.moe_config.intermediate_size_per_partition_unpadded)

    def set_mapping(self, punica_wrapper: Any) -> None:
        BaseLayerWithLoRA.set_mapping(self, punica_wrapper)
        self.method.__dict__["adapters"] = self

    def overwrite(self, x: Tensor, weights: Tensor, ids: Tensor, y: Tensor) -> None:
        """y [T, H] float32: the rows of tokens with an adapter, from x [T, H], weights and local ids [T, K]."""
        for slot, rows in self._list_slots(len(x)):
            out = torch.zeros(*ids[rows].shape, x.shape[1])  # (rows, K, H)
            for expert, at, k in group_by_expert(ids[rows]):
                h = self._multiply("w13", slot, expert, x[rows][at].float())
                h = swiglu(h, self.method.alpha, self.method.limit)
                out[at, k] = self._multiply("w2", slot, expert, h)
            y[rows] = torch.einsum("tkh,tk->th", out, weights[rows])

    def _list_slots(self, tokens: int) -> list[tuple[int, Tensor]]:
        """(slot, its rows) of the adapters with experts in this batch."""
        known = self.punica_wrapper.indices_len[0]
        if known is None or self.punica_wrapper.no_lora:  # nothing was asked yet, or nobody has an adapter
            return []
        slots = self.punica_wrapper.token_lora_indices[:tokens]
        found = [int(slot) for slot in slots.unique() if slot >= 0 and self.adapter_enabled[slot]]
        return [(slot, (slots == slot).nonzero()[:, 0]) for slot in found]

    def _multiply(self, part: str, slot: int, expert: int, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out], float32."""
        product: Tensor = self.method.multiply(self.base_layer.routed_experts, part, expert, x)
        a: Tensor = getattr(self, f"{part}_lora_a_stacked")[0][slot, expert].float()
        b: Tensor = getattr(self, f"{part}_lora_b_stacked")[0][slot, expert].float()
        return product + x @ a.T @ b.T
