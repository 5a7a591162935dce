"""The expert layers that the plugin puts in vLLM's place: MXFP4 with our native kernels, or widened while loading.

vLLM calls `create_weights`, its loaders fill the parameters (this rank's slice of them), then `apply` computes.
Parameters, with E local experts, I the intermediate size of this rank rounded up to whole MXFP4 blocks (what is beyond
is zero):

    w13_weight u8 [E, 2I, H / 2], w13_weight_scale u8 [E, 2I, H / 32], w13_bias f32 [E, 2I]    gate and up interleaved
    w2_weight  u8 [E, H, I / 2],  w2_weight_scale  u8 [E, H, I / 32],  w2_bias  f32 [E, H]     bias zero on ranks but
    the first
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.utils import replace_parameter, set_weight_attrs

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels.library import use_openmp
from gptoss_adapters.reference.experts import group_by_expert
from gptoss_adapters.reference.model import swiglu
from gptoss_adapters.spec import MXFP4_BLOCK, SWIGLU_ALPHA, SWIGLU_LIMIT
from gptoss_adapters.vllm_plugin import log, policy

PARTS = ("w13", "w2")
PRECISION = {torch.bfloat16: "q16"}  # error 1e-4, well below what rounding to bf16 costs (2e-3); the finer one else


def choose_method(moe: FusedMoEConfig, alpha: float, limit: float) -> FusedMoEMethodBase:
    """The MoE method for one layer: vLLM's own where it serves this dtype and these constants, else one of ours."""
    adapters = moe.is_lora_enabled and policy.on_cpu()  # which vLLM's kernels for CPUs do not take
    standard = (alpha, limit) == (SWIGLU_ALPHA, SWIGLU_LIMIT) and not adapters
    whose = policy.choose_experts(moe.in_dtype, standard)
    if whose == "builtin":
        from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4MoEMethod

        return GptOssMxfp4MoEMethod(moe)
    if whose == "constants":
        from gptoss_adapters.vllm_plugin.device_experts import make_packed_method

        return make_packed_method(moe, alpha, limit)
    if whose == "dequantise":
        return DequantisedExperts(moe, alpha, limit)
    if mxfp4.backend() == "numpy":
        warn_once("gptoss-adapters was built without native kernels: MXFP4 experts are widened while loading")
        return DequantisedExperts(moe, alpha, limit)
    return NativeExperts(moe, alpha, limit)


def create_packed(
    layer: Any, experts: int, hidden: int, inter: int, bias_dtype: torch.dtype, attributes: dict[str, Any]
) -> None:
    """The parameters of the module's table; zero until they are loaded, so that padding stays harmless."""
    for name, rows, columns in (("w13", 2 * inter, hidden), ("w2", hidden, inter)):
        made = {
            f"{name}_weight": torch.zeros(experts, rows, columns // 2, dtype=torch.uint8),
            f"{name}_weight_scale": torch.zeros(experts, rows, columns // MXFP4_BLOCK, dtype=torch.uint8),
            f"{name}_bias": torch.zeros(experts, rows, dtype=bias_dtype),
        }
        for key, value in made.items():
            parameter = torch.nn.Parameter(value, requires_grad=False)
            layer.register_parameter(key, parameter)
            set_weight_attrs(parameter, attributes)
        getattr(layer, f"{name}_weight_scale").quant_method = "block"


@cache
def warn_once(text: str) -> None:
    log.warning("%s", text)


def pad_to_blocks(inter: int) -> int:
    return -(-inter // MXFP4_BLOCK) * MXFP4_BLOCK


def select_local(layer: Any, weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (float32) and ids among this rank's experts; with expert parallel, a weight of zero for what others
    compute.
    """
    weights = weights.float()
    if layer.expert_map is None:
        return weights, ids
    local = layer.expert_map[ids.long()]
    return weights * (local >= 0), local.clamp(min=0)


@torch.library.custom_op("gptoss_adapters::experts", mutates_args=())
def call_experts(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    """A layer's experts as one opaque node of a compiled graph: [T, H] -> [T, H]. What they do inside (arrays of
    numpy, a native library, loops over the experts that were chosen) cannot be traced.

    The layer is found by its name in the forward context, as vLLM finds its attention: a graph out of the compile cache
    then reaches the layers of the model that runs it, whichever process compiled it.
    """
    layer = get_forward_context().no_compile_layers[layer_name].routed_experts
    result: Tensor = layer.quant_method.compute(layer, x, topk_weights, topk_ids)
    return result


@call_experts.register_fake
def _(x: Tensor, topk_weights: Tensor, topk_ids: Tensor, layer_name: str) -> Tensor:
    return x.new_empty(x.shape)


class NativeExperts(FusedMoEMethodBase):
    """Experts stay packed; one call of the native driver per layer, on views of vLLM's parameters."""

    weight_dtype = "gpt_oss_mxfp4"  # read by vLLM's loader of single experts

    def __init__(self, moe: FusedMoEConfig, alpha: float, limit: float) -> None:
        super().__init__(moe)
        self.alpha, self.limit = alpha, limit
        self.precision = PRECISION.get(moe.in_dtype, "q24")
        self.weights: mxfp4.ExpertWeights | None = None
        self.adapters: Any = None  # lora_experts, where the engine serves LoRA

    def maybe_roundup_sizes(
        self, hidden_size: int, intermediate_size_per_partition: int, *rest: Any, **more: Any
    ) -> tuple[int, int]:
        hidden, inter = super().maybe_roundup_sizes(hidden_size, intermediate_size_per_partition, *rest, **more)
        return hidden, pad_to_blocks(inter)

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        create_packed(layer, num_experts, hidden_size, intermediate_size_per_partition, torch.float32, attributes)

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        return None

    def process_weights_after_loading(self, layer: Any) -> None:
        arrays = []
        for name in PARTS:
            weight, scale, bias = (getattr(layer, f"{name}_{part}").data for part in ("weight", "weight_scale", "bias"))
            arrays += [weight.numpy().reshape(*scale.shape, MXFP4_BLOCK // 2), scale.numpy(), bias.numpy()]
        self.weights = mxfp4.ExpertWeights(*arrays)
        use_openmp()  # vLLM's other operations run there, one thread bound to each core

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Any,
    ) -> Tensor:
        """x [T, H] -> [T, H], weighted and summed over the chosen experts of this rank."""
        if torch.compiler.is_compiling():
            result: Tensor = call_experts(x, topk_weights, topk_ids, layer.layer_name)
            return result
        return self.compute(layer, x, topk_weights, topk_ids)

    def compute(self, layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        assert self.weights is not None
        weights, ids = select_local(layer, topk_weights, topk_ids)
        y = mxfp4.moe(
            x.float().contiguous().numpy(),
            self.weights,
            ids.to(torch.int32).contiguous().numpy(),
            weights.contiguous().numpy(),
            self.alpha,
            self.limit,
            threads=torch.get_num_threads(),
            precision=self.precision,
        )
        out = torch.from_numpy(y)
        if self.adapters is not None:
            self.adapters.overwrite(x, weights, ids, out)
        return out.to(x.dtype)

    def multiply(self, layer: Any, part: str, expert: int, x: Tensor) -> Tensor:
        """x float32 [N, in] -> float32 [N, out] of one expert's w13 or w2, with its bias."""
        name = {"w13": "gate_up", "w2": "down"}[part]
        blocks, scales, bias = (getattr(self.weights, f"{name}_{of}")[expert] for of in ("blocks", "scales", "bias"))
        rows, threads = x.contiguous().numpy(), torch.get_num_threads()
        return torch.from_numpy(mxfp4.matmul(rows, blocks, scales, bias, threads, self.precision))


class DenseExperts(UnquantizedFusedMoEMethod):
    """Experts in the model's dtype on a CPU. vLLM's kernels with the usual constants, which are compiled into them;
    torch one expert at a time with others, and with adapters.
    """

    is_monolithic = False  # nor are vLLM's kernels for CPUs; its property asks `super()`, which Dynamo cannot trace

    def __init__(self, moe: FusedMoEConfig, alpha: float, limit: float) -> None:
        super().__init__(moe)
        self.alpha, self.limit = alpha, limit
        self.standard = (alpha, limit) == (SWIGLU_ALPHA, SWIGLU_LIMIT) and not moe.is_lora_enabled
        self.adapters: Any = None  # lora_experts, where the engine serves LoRA

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.standard:
            super().process_weights_after_loading(layer)

    def apply(
        self,
        layer: Any,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: Any,
        shared_experts_input: Any,
    ) -> Any:
        if self.standard:
            return self.forward_native(layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input)
        if torch.compiler.is_compiling():
            return call_experts(x, topk_weights, topk_ids, layer.layer_name)
        return self.compute(layer, x, topk_weights, topk_ids)

    def compute(self, layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        weights, ids = select_local(layer, topk_weights, topk_ids)
        out = x.new_zeros((*ids.shape, x.shape[1]), dtype=torch.float32)  # (T, K, H)
        for expert, rows, slots in group_by_expert(ids):
            h = linear(x[rows], layer.w13_weight[expert], layer.w13_bias[expert].to(x.dtype))
            h = swiglu(h, self.alpha, self.limit)
            out[rows, slots] = linear(h, layer.w2_weight[expert], layer.w2_bias[expert].to(x.dtype)).float()
        result = torch.einsum("tkh,tk->th", out, weights)
        if self.adapters is not None:
            self.adapters.overwrite(x, weights, ids, result)
        return result.to(x.dtype)

    def multiply(self, layer: Any, part: str, expert: int, x: Tensor) -> Tensor:
        """As `NativeExperts.multiply`, rounded to the model's dtype on the way."""
        weight, bias = (getattr(layer, f"{part}_{of}")[expert] for of in ("weight", "bias"))
        return linear(x.to(weight.dtype), weight, bias.to(weight.dtype)).float()


class DequantisedExperts(DenseExperts):
    """MXFP4 in the checkpoint, the model's dtype in memory (nearly four times the bytes), vLLM's kernels for
    unquantised experts.
    """

    weight_dtype = "gpt_oss_mxfp4"

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        self.dtype = params_dtype
        create_packed(layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, attributes)

    def process_weights_after_loading(self, layer: Any) -> None:
        for name in PARTS:
            weight, scale = (getattr(layer, f"{name}_{part}").data for part in ("weight", "weight_scale"))
            wide = torch.empty(*weight.shape[:2], weight.shape[2] * 2, dtype=self.dtype)
            for e in range(len(wide)):
                blocks, scales = weight[e].numpy().reshape(*scale.shape[1:], MXFP4_BLOCK // 2), scale[e].numpy()
                wide[e].copy_(torch.from_numpy(mxfp4.decode(blocks, scales, np.float32)))
            replace_parameter(layer, f"{name}_weight", wide)
            delattr(layer, f"{name}_weight_scale")
        super().process_weights_after_loading(layer)
