"""What a checkpoint needs that vLLM's own gpt-oss model does not give: read from its config and its files' headers.

vLLM 0.32 computes with even layers sliding, eps 1e-5, SwiGLU limit 7 and alpha 1.702, and YaRN without an attention
factor, whatever the config says; and it knows two ways in which the tensors are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import BadInput, GptOssError
from gptoss_adapters.spec import RMS_NORM_EPS, SWIGLU_ALPHA, SWIGLU_LIMIT, GptOssConfig, alternating
from gptoss_adapters.vllm_plugin import policy

if TYPE_CHECKING:
    from vllm.config import VllmConfig

BUILTIN = (Kind.HF_MXFP4, Kind.HF_BF16)  # kinds whose names and axes vLLM's loader knows
_ROPE_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")


@dataclass(frozen=True)
class Decision:
    """`reasons`: why vLLM's own class would not do, empty if it would. `checkpoint`: None where the files are not
    here yet.
    """

    config: GptOssConfig
    checkpoint: Checkpoint | None
    quantise: bool
    reasons: tuple[str, ...]

    @property
    def packed(self) -> bool | None:
        """Whether the model's experts are MXFP4 in memory; None: as vLLM's config says."""
        return None if self.checkpoint is None else self.quantise or self.checkpoint.kind.packed

    @property
    def translates(self) -> bool:
        """Whether the weights are read through our layouts, not by the names that vLLM's loader streams."""
        return self.checkpoint is not None and (self.quantise or self.checkpoint.kind not in BUILTIN)


def decide(vllm_config: VllmConfig) -> Decision:
    """Raises BadInput for a config that no gpt-oss model can have, and for local files that are damaged."""
    model = vllm_config.model_config
    hf = model.hf_config
    checkpoint = open_local(str(model.model))
    config = read_config(hf, checkpoint)
    _refuse_unserved(config, checkpoint)
    quantise = policy.quantize_mode() == "mxfp4" and checkpoint is not None and not checkpoint.kind.packed
    stated = (getattr(hf, "quantization_config", None) or {}).get("quant_method")
    reasons = [*_compare_config(config, hf)]
    if checkpoint is not None:
        if checkpoint.kind not in BUILTIN:
            reasons.append(f"the tensors are stored as {checkpoint.kind}")
        elif checkpoint.kind.packed != (stated in ("mxfp4", "gpt_oss_mxfp4")):
            reasons.append(f"quant_method {stated} does not fit tensors stored as {checkpoint.kind}")
    if quantise:
        reasons.append("GPTOSS_ADAPTERS_QUANTIZE=mxfp4")
    if takes_adapters(vllm_config) and not (quantise or (checkpoint.kind.packed if checkpoint else stated)):
        reasons.append("--enable-lora with experts in the model's dtype (vLLM's CPU kernels for them take no adapter)")
    if policy.selfcheck():
        reasons.append("GPTOSS_ADAPTERS_SELFCHECK=1")
    if policy.mode() == "force":
        reasons.append("GPTOSS_ADAPTERS_VLLM=force")
    return Decision(config, checkpoint, quantise, tuple(reasons))


def _refuse_unserved(config: GptOssConfig, checkpoint: Checkpoint | None) -> None:
    """Raises BadInput for layers of different kinds: vLLM's gpt-oss classes make all of them alike."""
    differ = [name for name in ("experts_per_layer", "windows") if getattr(config, name)]
    if checkpoint is not None and len(checkpoint.expert_encodings()) > 1:
        differ.append("how the experts are stored")
    if differ:
        raise BadInput(
            f"the layers differ in {', '.join(differ)}, which vLLM's gpt-oss classes cannot say",
            file=None if checkpoint is None else checkpoint.path,
            hint="to-hf writes experts of one kind" if differ[-1].startswith("how") else "GptOss computes such a model",
        )


def takes_adapters(vllm_config: VllmConfig) -> bool:
    """Whether LoRA is served on a CPU, where only our experts can."""
    return vllm_config.lora_config is not None and policy.on_cpu()


def read_config(hf: Any, checkpoint: Checkpoint | None = None) -> GptOssConfig:
    """The config that vLLM holds (so `--hf-overrides` counts), with what transformers drops or fills in read from
    the file.
    """
    values = hf.to_dict()
    raw = {} if checkpoint is None or checkpoint.config_file is None else json.loads(checkpoint.config_file.read_text())
    if "experts_per_token" in raw and "num_experts_per_tok" not in raw:  # transformers fills in its default, 4
        values["num_experts_per_tok"] = raw["experts_per_token"]
    return spellings.from_hf(values, None if checkpoint is None else str(checkpoint.config_file))


def _compare_config(config: GptOssConfig, hf: Any) -> Iterator[str]:
    """The fields in which the config differs from what the built-in model assumes, in words."""
    fixed = {
        "rms_norm_eps": RMS_NORM_EPS,
        "swiglu_limit": SWIGLU_LIMIT,
        "swiglu_alpha": SWIGLU_ALPHA,
        "layer_types": alternating(config.num_hidden_layers),
    }
    for name, assumed in fixed.items():
        value = getattr(config, name)
        if value != assumed and name == "layer_types":
            yield "layer_types (vLLM assumes even layers sliding)"
        elif value != assumed:
            yield f"{name} {value} (vLLM assumes {assumed})"
    rope = getattr(hf, "rope_parameters", None) or {}
    if not config.uses_yarn:
        yield "rope_type without YaRN (vLLM assumes yarn)"
    elif missing := [key for key in _ROPE_KEYS if key not in rope]:
        yield f"rope_parameters without {', '.join(missing)} (vLLM needs them)"
    if config.attention_factor is not None:
        yield f"rope attention_factor {config.attention_factor} (vLLM ignores it)"
    for ours, theirs in (("num_experts", "num_local_experts"), ("experts_per_token", "num_experts_per_tok")):
        if getattr(config, ours) != getattr(hf, theirs):
            yield f"{ours} {getattr(config, ours)} (vLLM reads {getattr(hf, theirs)})"


def open_local(path: str) -> Checkpoint | None:
    """The checkpoint behind vLLM's `model`: a local folder, or what is in the Hub's cache. None: it is not here, or
    not ours.
    """
    folder = _find_local(path)
    if folder is None or not any(folder.glob("*.safetensors")):
        return None
    return open_checkpoint(folder)


def tell_kind(path: str) -> Kind | None:
    """The kind of a local checkpoint, or None where that cannot be told."""
    try:
        checkpoint = open_local(path)
    except (GptOssError, OSError):
        return None
    return None if checkpoint is None else checkpoint.kind


def _find_local(path: str) -> Path | None:
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, local_files_only=True))
    except Exception:  # not a repository, not in the cache, no Hub: vLLM's loader goes its own way
        return None
