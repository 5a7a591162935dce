"""Experts on a GPU, with SwiGLU constants of the checkpoint's own: computed by those of vLLM's kernels that take them.

vLLM's configs carry such constants (`swiglu_limit`, `swiglu_alpha`, `swiglu_beta`), but most of its backends drop them
in gpt-oss's activation without a word and compute with 7.0 and 1.702. Read in vLLM 0.32:

    MXFP4   FlashInfer TRTLLM and CUTLASS, Triton unfused, AITER Triton (W4A16)   both constants
            B12X, AITER CK, AITER W4A8                                            the limit at most
            Triton (fused), Marlin, Humming, CUTLASS, DeepGEMM, FlashInfer's      neither
            expert-parallel megakernels
    bf16    Triton                          neither, but its activation is a method, which is put right here
            FlashInfer, AITER, batched      neither

What drops them is not used: another backend that can run is, unless the user named this one. None of this ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import biased_moe_quant_config
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from gptoss_adapters.errors import UsageError
from gptoss_adapters.spec import SWIGLU_ALPHA, SWIGLU_LIMIT
from gptoss_adapters.vllm_plugin import log

BETA = 1.0  # added to the linear half: part of gpt-oss's activation, no config has another one

# Names of `Mxfp4MoeBackend` whose kernels take both constants, and how `--moe-backend` asks for them, best first.
OBEYING = (
    "TRITON_UNFUSED",
    "FLASHINFER_TRTLLM_MXFP4_BF16",
    "FLASHINFER_TRTLLM_MXFP4_MXFP8",
    "FLASHINFER_CUTLASS_MXFP4_BF16",
    "FLASHINFER_CUTLASS_MXFP4_MXFP8",
    "AITER_TRITON_MXFP4_BF16",
)
ASKED_AS = ("triton_unfused", "flashinfer_trtllm", "flashinfer_cutlass", "aiter_triton_mxfp4_bf16")


def make_packed_method(moe: FusedMoEConfig, alpha: float, limit: float) -> FusedMoEMethodBase:
    """vLLM's MXFP4 method, told the checkpoint's constants. Raises UsageError where no backend here takes them."""
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4 as oracle
    from vllm.model_executor.layers.quantization.mxfp4 import GptOssMxfp4MoEMethod

    class WithConstants(GptOssMxfp4MoEMethod):
        def get_fused_moe_quant_config(self, layer: Any) -> Any:
            triton = self.mxfp4_backend in oracle.TRITON_BACKENDS
            scales = (
                (self.w13_precision_config, self.w2_precision_config)
                if triton
                else (layer.w13_weight_scale, layer.w2_weight_scale)
            )
            return oracle.make_mxfp4_moe_quant_config(
                mxfp4_backend=self.mxfp4_backend,
                w1_scale=scales[0],
                w2_scale=scales[1],
                w1_bias=layer.w13_bias,
                w2_bias=layer.w2_bias,
                gemm1_alpha=alpha,
                gemm1_beta=BETA,
                swiglu_limit=limit,
                layer=layer,
            )

    if (alpha, limit) != (SWIGLU_ALPHA, SWIGLU_LIMIT):  # every backend computes with those
        put_constants(moe, alpha, limit)
        settle_backend(moe, lambda: oracle.select_mxfp4_moe_backend(moe)[0].name, OBEYING, ASKED_AS)
    return WithConstants(moe)


class DenseWithConstants(UnquantizedFusedMoEMethod):
    """bf16 experts with the checkpoint's constants. Raises UsageError where Triton's kernels cannot run."""

    def __init__(self, moe: FusedMoEConfig, alpha: float, limit: float) -> None:
        from vllm.model_executor.layers.fused_moe.oracle import unquantized as oracle

        put_constants(moe, alpha, limit)
        settle_backend(moe, lambda: oracle.select_unquantized_moe_backend(moe)[0].name, ("TRITON",), ("triton",))
        super().__init__(moe)
        self.experts_cls = TritonWithConstants
        self.alpha, self.limit = alpha, limit

    def get_fused_moe_quant_config(self, layer: Any) -> Any:
        return biased_moe_quant_config(
            layer.w13_bias,
            layer.w2_bias,
            gemm1_alpha=self.alpha,
            gemm1_beta=BETA,
            gemm1_clamp_limit=self.limit,
        )


class TritonWithConstants(TritonExperts):
    def activation(self, activation: MoEActivation, output: Tensor, input: Tensor, **more: Any) -> None:
        """vLLM's kernel for gate and up interleaved, which takes the constants if it is given them."""
        if activation != MoEActivation.SWIGLUOAI:
            super().activation(activation, output, input, **more)
            return
        config = self.activation_config
        torch.ops._C.swigluoai_and_mul(output, input, config.alpha, config.clamp_limit)


def put_constants(moe: FusedMoEConfig, alpha: float, limit: float) -> None:
    """Into vLLM's own fields, by which it also leaves out backends that it knows not to take them."""
    moe.swiglu_alpha, moe.swiglu_beta, moe.swiglu_limit = alpha, BETA, limit


def settle_backend(
    moe: FusedMoEConfig, select: Callable[[], str], obeying: tuple[str, ...], asked_as: tuple[str, ...]
) -> None:
    """Sets `moe.moe_backend` to one whose kernels take the constants, where vLLM's choice drops them.

    `select` names vLLM's choice for what `moe` says now, and raises where there is none. Raises UsageError when the
    user asked for a backend that drops them, or none that takes them can run here.
    """
    chosen = select()
    if chosen in obeying:
        return
    constants = f"SwiGLU constants (alpha {moe.swiglu_alpha}, limit {moe.swiglu_limit})"
    if moe.moe_backend != "auto":
        raise UsageError(
            f"--moe-backend {moe.moe_backend}: its kernels ({chosen}) do not take the checkpoint's {constants}",
            hint=f"give --moe-backend auto, or one of {', '.join(asked_as)}",
        )
    for name in asked_as:
        moe.moe_backend = name
        try:
            if (found := select()) in obeying:
                log.info("gptoss-adapters: %s experts instead of %s, which drops the %s", found, chosen, constants)
                return
        except (ValueError, NotImplementedError, ImportError):
            continue
    moe.moe_backend = "auto"
    raise UsageError(
        f"no expert kernels that run here take the checkpoint's {constants}: vLLM's choice, {chosen}, drops them",
        hint="install triton_kernels or flashinfer, or serve on a CPU",
    )
