"""When the plugin steps in. Environment variables are read at each call: vLLM's processes inherit them."""

from __future__ import annotations

import os
import sys

from gptoss_adapters.errors import UsageError

KNOWN_VERSIONS = ("0.32",)  # vLLM minor versions whose internals were read and tested
METHOD = "gptoss_mxfp4"  # the name under which vLLM knows our MXFP4 method: `--quantization gptoss_mxfp4`


def _choice(variable: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(variable, "").strip().lower() or choices[0]
    if value not in choices:
        raise UsageError(f"{variable} must be one of {', '.join(choices)}", got=value)
    return value


def mode() -> str:
    """auto, off or force. What is not one of them counts as off: the user wanted something, and it was not this."""
    try:
        return _choice("GPTOSS_ADAPTERS_VLLM", ("auto", "off", "force"))
    except UsageError:
        return "off"


def experts_mode() -> str:
    """native (packed, our kernels) or dequantise. Raises UsageError for anything else."""
    return _choice("GPTOSS_ADAPTERS_EXPERTS", ("native", "dequantise"))


def quantize_mode() -> str:
    """ "", or mxfp4: bf16 experts become MXFP4 while loading. Raises UsageError for anything else."""
    return _choice("GPTOSS_ADAPTERS_QUANTIZE", ("", "mxfp4"))


def selfcheck() -> bool:
    return os.environ.get("GPTOSS_ADAPTERS_SELFCHECK", "").strip().lower() not in ("", "0", "false", "off")


def unknown_version() -> str:
    """Why this vLLM is not one we know, or ""."""
    version = str(getattr(sys.modules.get("vllm"), "__version__", ""))
    if not version:
        return "vLLM's version could not be read"
    if not version.startswith(tuple(f"{known}." for known in KNOWN_VERSIONS)):
        return f"vLLM {version} is not one of the versions it was tested with ({', '.join(KNOWN_VERSIONS)})"
    return ""


def on_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def builtin_mxfp4(dtype: object) -> bool:
    """Whether vLLM's own MXFP4 experts compute in this activation dtype on this machine: bf16, and on a CPU only
    with AMX.
    """
    import torch

    if dtype != torch.bfloat16:
        return False
    if not on_cpu():
        return True
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsMxfp4

    return bool(CPUExpertsMxfp4._supports_current_device())
