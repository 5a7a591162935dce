"""Our MXFP4 method as a quantization config under a name of its own, which vLLM asks before its built-in ones.

It claims gpt-oss checkpoints in MXFP4 where vLLM's own may not serve them (a CPU; with AMX that depends on the dtype,
which is not known yet, so the built-in method is handed back layer by layer). Every other checkpoint never sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization import (
    QUANTIZATION_METHODS,
    get_quantization_config,
    register_quantization_config,
)
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from gptoss_adapters.spec import SWIGLU_ALPHA, SWIGLU_LIMIT
from gptoss_adapters.vllm_plugin import policy

CHECKPOINT_NAMES = ("mxfp4", "gpt_oss_mxfp4")  # what a checkpoint says, and what vLLM rewrites it to
OTHER_NAMES = ("quark", "compressed-tensors")  # may be MXFP4 in gpt-oss checkpoints, expert by expert


class GptOssMxfp4(QuantizationConfig):
    """MXFP4 experts; everything else unquantised. alpha and limit: of this checkpoint's SwiGLU."""

    def __init__(self, alpha: float = SWIGLU_ALPHA, limit: float = SWIGLU_LIMIT) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    @classmethod
    def get_name(cls) -> str:
        return "gpt_oss_mxfp4"  # not our own: RoutedExperts.weight_loader recognises stacked experts by this name

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GptOssMxfp4:
        return cls()

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        """Our name for a checkpoint that we take, None for every other one."""
        method = hf_quant_cfg.get("quant_method") if isinstance(hf_quant_cfg, dict) else None
        if getattr(hf_config, "model_type", None) != "gpt_oss" or policy.mode() == "off":
            return None
        if method not in CHECKPOINT_NAMES and not (method in OTHER_NAMES and _is_packed(hf_config, hf_quant_cfg)):
            return None
        wanted = user_quant == policy.METHOD or policy.mode() == "force" or policy.on_cpu()
        return policy.METHOD if wanted else None

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        self.alpha = float(getattr(hf_config, "swiglu_alpha", None) or SWIGLU_ALPHA)
        self.limit = float(getattr(hf_config, "swiglu_limit", None) or SWIGLU_LIMIT)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        if isinstance(layer, LinearBase):
            return UnquantizedLinearMethod()
        return self.moe_method(layer.moe_config) if isinstance(layer, RoutedExperts) else None

    def moe_method(self, moe: Any) -> Any:
        from gptoss_adapters.vllm_plugin.experts import choose_method

        return choose_method(moe, self.alpha, self.limit)


class DenseConstants(GptOssMxfp4):
    """Unquantised experts whose SwiGLU has constants of its own, which vLLM's kernels have compiled in."""

    @classmethod
    def get_name(cls) -> str:
        return "gptoss_dense"

    def moe_method(self, moe: Any) -> Any:
        if policy.on_cpu():
            from gptoss_adapters.vllm_plugin.experts import DenseExperts

            return DenseExperts(moe, self.alpha, self.limit)
        from gptoss_adapters.vllm_plugin.device_experts import DenseWithConstants

        return DenseWithConstants(moe, self.alpha, self.limit)


def _is_packed(hf_config: Any, stated: dict[str, Any]) -> bool:
    from gptoss_adapters.vllm_plugin.decision import is_packed

    return is_packed(hf_config, stated)


def find_conflict() -> str:
    """Who else has our method's name, or ""."""
    if policy.METHOD not in QUANTIZATION_METHODS:
        return ""
    found = get_quantization_config(policy.METHOD).__module__
    return "" if found == __name__ else f"another plugin has registered the quantization {policy.METHOD}: {found}"


def install() -> None:
    if policy.METHOD not in QUANTIZATION_METHODS or find_conflict():
        register_quantization_config(policy.METHOD)(GptOssMxfp4)
