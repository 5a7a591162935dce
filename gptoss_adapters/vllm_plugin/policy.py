"""When the plugin steps in. Environment variables are read at each call: vLLM's processes inherit them."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from typing import Literal

from gptoss_adapters.errors import UsageError

# vLLM's minor versions that the parser's tests passed with (tests/data/vllm_versions.json). A word in the log: each
# hook decides by what it finds.
TESTED = ("0.27", "0.32", "0.33")
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
    """Whether the user asked for the self-check. On GPUs it runs unless `selfcheck_is_off`."""
    return _read_selfcheck() != "" and not selfcheck_is_off()


def selfcheck_is_off() -> bool:
    return _read_selfcheck() in ("0", "false", "off")


def selfcheck_required() -> bool:
    """Whether a server that the check could not pass shall not start."""
    return _read_selfcheck() == "require"


def _read_selfcheck() -> str:
    return os.environ.get("GPTOSS_ADAPTERS_SELFCHECK", "").strip().lower()


def describe_version() -> str:
    """vLLM's version, and whether it is one that this package was tested with."""
    version = str(getattr(sys.modules.get("vllm"), "__version__", "of an unknown version"))
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\.post\d+)?(\+.*)?", version)  # a nightly or a candidate is not one
    tested = release is not None and release[1] in TESTED
    return version if tested else f"{version}, with which it was not tested,"


def is_first_process() -> bool:
    """Whether this is the process that a person started: not an engine core, a worker, or a later rank."""
    return multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"


def on_cpu() -> bool:
    """Whether vLLM computes on the CPU here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def choose_experts(dtype: object, standard: bool) -> Literal["builtin", "constants", "dequantise", "native"]:
    """Whose MXFP4 experts compute in this activation dtype: vLLM's, vLLM's told other constants, or ours, widened or
    packed. `standard`: the SwiGLU has the constants that vLLM's kernels assume.
    """
    if mode() != "force" and standard and builtin_mxfp4(dtype):
        return "builtin"
    if not on_cpu():
        return "constants"
    return "dequantise" if experts_mode() == "dequantise" else "native"


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
