"""What a checkpoint needs that vLLM's own gpt-oss model does not give: read from its config and its files' headers.

vLLM 0.32 computes with even layers sliding, eps 1e-5, SwiGLU limit 7 and alpha 1.702, and YaRN without an attention
factor, whatever the config says; and it knows two ways in which the tensors are stored.

Whatever goes wrong here costs no more than what it would have given: it becomes a note, and vLLM's own code serves. It
is raised only where the user asked for what it would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import Checkpoint, layouts, open_checkpoint
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.checkpoint.kinds import SAFETENSORS_KINDS, Kind
from gptoss_adapters.checkpoint.opening import is_stored_out_in, open_weights
from gptoss_adapters.errors import BadInput, GptOssError, UsageError
from gptoss_adapters.spec import RMS_NORM_EPS, SWIGLU_ALPHA, SWIGLU_LIMIT, GptOssConfig, alternating
from gptoss_adapters.vllm_plugin import policy, served_files

if TYPE_CHECKING:
    from vllm.config import VllmConfig

BUILTIN = (Kind.HF_MXFP4, Kind.HF_BF16)  # kinds whose names and axes vLLM's loader knows
_ROPE_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_OUR_METHODS = ("gpt_oss_mxfp4", "gptoss_dense")  # quantisations that are ours to set: vLLM's for gpt-oss, and ours
_LORA = "--enable-lora with experts in the model's dtype (vLLM's CPU kernels for them take no adapter)"


@dataclass(frozen=True)
class Decision:
    """`reasons`: why vLLM's own class would not do, empty if it would. `notes`: what went wrong in deciding, or cannot
    be obeyed. `config`: None where it cannot be read.
    """

    config: GptOssConfig | None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: Kind | None = None  # how the tensors are stored; None: not known, or the files are not here
    checkpoint: Checkpoint | None = None  # what the weights are read from; None: vLLM's loader streams them
    packed: bool | None = None  # whether the experts are MXFP4 in memory; None: vLLM's own quantisation stays
    quantise: bool = False

    @property
    def translates(self) -> bool:
        """Whether the weights are read through our layouts, not by the names that vLLM's loader streams."""
        return self.checkpoint is not None


class Unserved(BadInput):
    """A model that vLLM's gpt-oss classes cannot be, ours included: it would be another one without a word."""


def decide(vllm_config: VllmConfig, *, download: bool = False) -> Decision:
    """Raises where the user asked for something (`list_demands`) that cannot be had, and for what no class here serves.

    `download`: weights that are not here are fetched first, by vLLM's own loader; else only what is here is looked at.
    """
    demands = list_demands()
    try:
        return _Deciding(vllm_config, download).decide()
    except Unserved:
        raise
    except Exception as error:
        if demands:
            raise
        return Decision(None, notes=(describe(error),))


def list_demands() -> list[str]:
    """The switches by which the user asked for us, as they were set. Raises UsageError for a value that is none."""
    asked = {
        "GPTOSS_ADAPTERS_QUANTIZE": policy.quantize_mode() == "mxfp4",
        "GPTOSS_ADAPTERS_SELFCHECK": policy.selfcheck_required(),
        "GPTOSS_ADAPTERS_VLLM": policy.mode() == "force",
    }
    return [name for name, wanted in asked.items() if wanted]


def describe(error: Exception) -> str:
    """One line; with its type where it is no error of ours, which say all there is."""
    text = " ".join(str(error).split())
    return text if isinstance(error, GptOssError) else f"{type(error).__name__}: {text}"


@dataclass
class _Deciding:
    """One decision on its way. `notes` collects what went wrong."""

    vllm_config: VllmConfig
    download: bool
    notes: list[str] = field(default_factory=list)

    def decide(self) -> Decision:
        hf = self.vllm_config.model_config.hf_config
        config = read_config(self.vllm_config)
        refuse_unserved(config)
        kind, files = self.find_kind(config)
        ours = self.quantisation in (None, *_OUR_METHODS)
        quantise = self.wants_quantising(kind, files)
        why = explain_storage(kind, self.quantisation) or ("GPTOSS_ADAPTERS_QUANTIZE=mxfp4" if quantise else "")
        if not why and kind in BUILTIN and not is_alike(kind, files, config):
            why = "not all experts are stored alike"
        checkpoint = self.open(files, config) if why and files else None
        refuse_unserved(config, checkpoint)
        storage = [why] if checkpoint is not None else []
        packed = self.is_packed(kind, checkpoint, quantise)
        if takes_adapters(self.vllm_config) and packed is False:
            storage.append(_LORA)
        return Decision(
            config,
            (*self.obeyed(_compare_config(config, hf), ours), *storage, *_list_switches()),
            tuple(self.notes),
            kind,
            checkpoint,
            packed,
            quantise,
        )

    @property
    def quantisation(self) -> str | None:
        """The name of the quantisation that vLLM has chosen for this model."""
        chosen = self.vllm_config.quant_config
        return None if chosen is None else str(chosen.get_name())

    def find_kind(self, config: GptOssConfig) -> tuple[Kind | None, list[SafetensorsFile]]:
        """How the tensors are stored, told by their names, and the files with their headers read."""
        try:
            paths = served_files.find_served(self.vllm_config, download=self.download)
            files = [SafetensorsFile(path, path.resolve()) for path in paths or ()]
            return tell_kind(files, config), files
        except Exception as error:
            self.note(error)
            return None, []

    def open(self, files: list[SafetensorsFile], config: GptOssConfig) -> Checkpoint | None:
        try:
            return open_weights(files, config)
        except Exception as error:
            self.note(error)
            return None

    def note(self, error: Exception) -> None:
        if list_demands():
            raise error
        self.notes.append(describe(error))

    def wants_quantising(self, kind: Kind | None, files: list[SafetensorsFile]) -> bool:
        if policy.quantize_mode() != "mxfp4" or (kind is not None and kind.packed):
            return False
        switch = "GPTOSS_ADAPTERS_QUANTIZE=mxfp4"
        if self.quantisation not in (None, *_OUR_METHODS):
            raise UsageError(f"{switch} does not go with another quantisation", got=self.quantisation)
        if kind is not None:
            return True
        if files:
            raise BadInput(f"{switch}: how the experts are stored is not known", file=files[0].path)
        if self.download:
            how = f"--load-format {self.vllm_config.load_config.load_format}"
            raise UsageError(f"{switch} quantises complete safetensors files, and {how} gives none of this model")
        self.notes.append(f"{switch}: the weights are not here yet")
        return False

    def obeyed(self, differences: Mapping[str, str], ours: bool) -> list[str]:
        """The differences in words; without those that another quantisation's expert kernels would not obey."""
        lost = [] if ours else [name for name in differences if name.startswith("swiglu_")]
        self.notes += [f"not obeyed with quantization {self.quantisation}: {differences[name]}" for name in lost]
        return [words for name, words in differences.items() if name not in lost]

    def is_packed(self, kind: Kind | None, checkpoint: Checkpoint | None, quantise: bool) -> bool | None:
        if checkpoint is not None and (quantise or checkpoint.kind.packed):
            return True
        if self.quantisation not in (None, *_OUR_METHODS):
            return None
        known = checkpoint.kind if checkpoint is not None else kind if kind in BUILTIN else None
        return known.packed if known is not None else self.quantisation == "gpt_oss_mxfp4"


def tell_kind(files: list[SafetensorsFile], config: GptOssConfig) -> Kind | None:
    """How the experts are stored, by the tensors' names and axes, whatever else is in the files."""
    sources = {name: source for file in files for name, source in file.tensors.items()}
    kind = layouts.find_kind(sources, config, SAFETENSORS_KINDS)
    return Kind.HF_OUT_IN if kind is Kind.HF_BF16 and is_stored_out_in(sources, config) else kind


def is_alike(kind: Kind, files: list[SafetensorsFile], config: GptOssConfig) -> bool:
    """Whether all experts are in the kind's own form."""
    return layouts.holds_experts(kind, config, {name for file in files for name in file.tensors})


def explain_storage(kind: Kind | None, quantisation: str | None) -> str:
    """Why vLLM's loader cannot read tensors that are stored so, or ""."""
    if kind is None or (kind is Kind.QUARK and quantisation == "quark"):  # vLLM has a loader of its own for the latter
        return ""
    if kind not in BUILTIN:
        return f"the tensors are stored as {kind}"
    if quantisation in (None, *_OUR_METHODS) and kind.packed != (quantisation == "gpt_oss_mxfp4"):
        return f"quantization {quantisation} does not fit tensors stored as {kind}"
    return ""


def refuse_unserved(config: GptOssConfig, checkpoint: Checkpoint | None = None) -> None:
    """Raises Unserved for layers of different kinds: vLLM's gpt-oss classes make all of them alike."""
    differ = [name for name in ("experts_per_layer", "windows") if getattr(config, name)]
    if checkpoint is not None and len(checkpoint.expert_encodings()) > 1:
        differ.append("how the experts are stored")
    if differ:
        raise Unserved(
            f"the layers differ in {', '.join(differ)}, which vLLM's gpt-oss classes cannot say",
            file=None if checkpoint is None else checkpoint.path,
            hint="to-hf writes experts of one kind" if differ[-1].startswith("how") else "GptOss computes such a model",
        )


def takes_adapters(vllm_config: VllmConfig) -> bool:
    """Whether LoRA is served on a CPU, where only our experts can."""
    return vllm_config.lora_config is not None and policy.on_cpu()


def _list_switches() -> Iterator[str]:
    if policy.selfcheck():
        yield "GPTOSS_ADAPTERS_SELFCHECK=1"
    if policy.mode() == "force":
        yield "GPTOSS_ADAPTERS_VLLM=force"


# The config -----------------------------------------------------------------------------------------------------------


def read_config(vllm_config: VllmConfig) -> GptOssConfig:
    """The config that vLLM holds (so `--hf-overrides` counts), with what transformers fills in read from the file.

    Whether the embeddings are tied is vLLM's to decide. Raises BadInput for what no gpt-oss model can have.
    """
    model = vllm_config.model_config
    values = model.hf_config.to_dict() | {"tie_word_embeddings": False}
    if "experts_per_token" in values and values["experts_per_token"] != values.get("num_experts_per_tok"):
        stated = _read_file(vllm_config) | (model.hf_overrides if isinstance(model.hf_overrides, dict) else {})
        if "num_experts_per_tok" not in stated:  # transformers fills in its default, 4
            values["num_experts_per_tok"] = values["experts_per_token"]
    return spellings.from_hf(values, str(model.model))


def _read_file(vllm_config: VllmConfig) -> dict[str, Any]:
    """config.json as it is written, from where vLLM has it."""
    from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

    model = vllm_config.model_config
    return get_hf_file_to_dict("config.json", model.hf_config_path or model.model, model.revision) or {}


def _compare_config(config: GptOssConfig, hf: Any) -> dict[str, str]:
    """The fields in which the config differs from what the built-in model assumes, and how, in words."""
    fixed = {
        "rms_norm_eps": RMS_NORM_EPS,
        "swiglu_limit": SWIGLU_LIMIT,
        "swiglu_alpha": SWIGLU_ALPHA,
    }
    found = {
        name: f"{name} {getattr(config, name)} (vLLM assumes {assumed})"
        for name, assumed in fixed.items()
        if getattr(config, name) != assumed
    }
    if config.layer_types != alternating(config.num_hidden_layers):
        found["layer_types"] = "layer_types (vLLM assumes even layers sliding)"
    rope = getattr(hf, "rope_parameters", None) or {}
    if not config.uses_yarn:
        found["rope_type"] = "rope_type without YaRN (vLLM assumes yarn)"
    elif missing := [key for key in _ROPE_KEYS if key not in rope]:
        found["rope_parameters"] = f"rope_parameters without {', '.join(missing)} (vLLM needs them)"
    if config.attention_factor is not None:
        found["attention_factor"] = f"rope attention_factor {config.attention_factor} (vLLM ignores it)"
    for ours, theirs in (("num_experts", "num_local_experts"), ("experts_per_token", "num_experts_per_tok")):
        if getattr(config, ours) != getattr(hf, theirs, None):
            found[ours] = f"{ours} {getattr(config, ours)} (vLLM reads {getattr(hf, theirs, None)})"
    return found


# The checkpoint, asked for from elsewhere -----------------------------------------------------------------------------


def open_served(vllm_config: VllmConfig) -> Checkpoint | None:
    """The checkpoint that vLLM serves, or None: its files are not here, or vLLM loads something else. Raises
    GptOssError for one that cannot be read.
    """
    config = read_config(vllm_config)
    paths = served_files.find_served(vllm_config)
    return open_weights([SafetensorsFile(path, path.resolve()) for path in paths], config) if paths else None


def open_local(model: str) -> Checkpoint | None:
    """The checkpoint of a folder, or of a repository's main revision in the Hub's cache; None: it is not here."""
    paths = served_files.find_files(model)
    return open_checkpoint(paths[0].parent) if paths else None


def is_packed(hf_config: Any, stated: Mapping[str, Any]) -> bool:
    """Whether a checkpoint that states Quark or compressed-tensors holds gpt-oss' experts in MXFP4 and nothing else
    quantised.

    vLLM asks before it has downloaded the weights: then what the config states must do. Never raises.
    """
    try:
        revision = getattr(hf_config, "_commit_hash", None)
        paths = served_files.find_files(str(getattr(hf_config, "_name_or_path", "")), revision)
        if not paths:
            return states_mxfp4(stated)
        config = spellings.from_hf(hf_config.to_dict() | {"tie_word_embeddings": False})
        return open_weights([SafetensorsFile(path, path.resolve()) for path in paths], config).kind.packed
    except Exception:  # it is not one that we can read
        return False


def states_mxfp4(stated: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` says that all it quantises are weights in MXFP4, and that attention is left."""
    if stated.get("quant_method") == "quark":
        weight = (stated.get("global_quant_config") or {}).get("weight") or {}
        mxfp4 = (weight.get("dtype"), weight.get("group_size")) == ("fp4", 32) and not stated.get("layer_quant_config")
        left = stated.get("exclude")
    else:
        groups = list((stated.get("config_groups") or {}).values())
        weights = [group.get("weights") or {} for group in groups]
        mxfp4 = bool(groups) and all(
            (w.get("num_bits"), w.get("type"), w.get("group_size")) == (4, "float", 32) for w in weights
        )
        left = stated.get("ignore")
    return mxfp4 and any("self_attn" in str(name) or "q_proj" in str(name) for name in left or ())
