"""What would be taken for one checkpoint, on this machine, by this vLLM: told without starting an engine."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_adapters.vllm_plugin import policy

EXPERTS = {  # by `policy.choose_experts`
    "builtin": "MXFP4, vLLM's own kernels",
    "constants": "MXFP4, those of vLLM's kernels that take this checkpoint's SwiGLU constants, refused where none does",
    "dequantise": "MXFP4, widened while loading, vLLM's kernels for unquantised experts",
    "native": "MXFP4 as stored, this package's kernels ({backend})",
}

DENSE_ON_GPU = "vLLM's Triton kernels, told this checkpoint's SwiGLU constants, refused where those cannot run"


@dataclass(frozen=True)
class CheckpointReport:
    """`problem`: why vLLM would not come to load it, or "". `takes_over`: why the model class is ours, empty if it is
    vLLM's. `lost`: what would go wrong without this package.
    """

    model: str
    kind: str
    dtype: str
    model_class: str
    takes_over: tuple[str, ...]
    experts: str
    lost: tuple[str, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def examine(model: str, inside: Collection[str]) -> CheckpointReport:
    """`inside`: the names of the hooks that would be registered. Never raises: what vLLM or the checkpoint says is the
    answer.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _examine(model, inside)
    except Exception as error:  # vLLM's own refusal of a config, a folder that is not there, a machine without a GPU
        text = next((line for line in str(error).splitlines() if line.strip()), "").strip()
        return CheckpointReport(model, "", "", "", (), "", (), f"{type(error).__name__}: {text}")


def _examine(model: str, inside: Collection[str]) -> CheckpointReport:
    from vllm.engine.arg_utils import EngineArgs

    from gptoss_adapters.vllm_plugin.decision import decide

    config = EngineArgs(model=model, skip_tokenizer_init=True).create_engine_config()
    hf = config.model_config.hf_config
    if getattr(hf, "model_type", None) != "gpt_oss":
        raise TypeError(f"{model} is a {getattr(hf, 'model_type', 'model')}, not a gpt_oss: nothing is taken")
    decision = decide(config)
    kind = "unknown, or not here yet" if decision.kind is None else str(decision.kind)
    reasons = decision.reasons if "model" in inside else ()
    dtype = config.model_config.dtype
    return CheckpointReport(
        model,
        kind,
        str(dtype).removeprefix("torch."),
        "gptoss-adapters'" if reasons else "vLLM's own",
        tuple(reasons),
        _describe_experts(config, decision, inside),
        tuple(_list_losses(config, decision, inside)),
        notes=decision.notes,
    )


def _is_packed(config: Any, decision: Any) -> bool:
    return bool(decision.packed) if decision.packed is not None else config.quant_config is not None


def _describe_experts(config: Any, decision: Any, inside: Collection[str]) -> str:
    from gptoss_adapters import mxfp4
    from gptoss_adapters.spec import SWIGLU_ALPHA, SWIGLU_LIMIT

    if decision.config is None:
        return "vLLM's own"
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    constants = (decision.config.swiglu_alpha, decision.config.swiglu_limit)
    standard = constants == (SWIGLU_ALPHA, SWIGLU_LIMIT)
    if not _is_packed(config, decision):
        if standard or "model" not in inside:
            return f"{dtype}, vLLM's kernels"
        return f"{dtype}, {'one expert at a time, in torch' if policy.on_cpu() else DENSE_ON_GPU}"
    ours = config.model_config.quantization == policy.METHOD or (decision.reasons and "model" in inside)
    if not ours:
        return "MXFP4, vLLM's own kernels"
    whose = policy.choose_experts(config.model_config.dtype, standard)
    return EXPERTS[whose].format(backend=mxfp4.backend())


def _list_losses(config: Any, decision: Any, inside: Collection[str]) -> Iterator[str]:
    """What vLLM alone would do with this checkpoint here, of what the hooks inside mend."""
    packed = decision.kind is not None and decision.kind.packed
    if "serve" in inside:
        yield "vllm serve would end with PackageNotFoundError"
    if packed and "quantization" in inside and not policy.builtin_mxfp4(config.model_config.dtype):
        yield "the checkpoint would be refused: vLLM has no MXFP4 experts for this dtype on this machine"
    if "model" in inside:
        yield from (
            f"not obeyed, or not read: {reason}" for reason in decision.reasons if "GPTOSS_ADAPTERS" not in reason
        )
    if "parser" in inside:
        yield "malformed output would be an error, or a lost call"
    if "tags" in inside:
        yield "demanded calls and answers by schema would be vLLM's own grammars, control tokens spelt as text"
