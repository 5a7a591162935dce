"""The model class under vLLM's own architecture name: vLLM's class, unchanged, where it would serve the checkpoint
right; else one built on its override points that obeys the config, and reads every kind of checkpoint through our
layouts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_world_group, model_parallel_is_initialized
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models import gpt_oss as builtin
from vllm.model_executor.models.utils import maybe_prefix

from gptoss_adapters.errors import GptOssError
from gptoss_adapters.spec import SLIDING, SWIGLU_ALPHA, SWIGLU_LIMIT, GptOssConfig
from gptoss_adapters.vllm_plugin import log, lora_hooks, policy
from gptoss_adapters.vllm_plugin.decision import Decision, decide, describe, list_demands, takes_adapters
from gptoss_adapters.vllm_plugin.parallel import refuse_uneven
from gptoss_adapters.vllm_plugin.quantised import open_quantised
from gptoss_adapters.vllm_plugin.registry import ARCHITECTURE
from gptoss_adapters.vllm_plugin.selfcheck import schedule
from gptoss_adapters.vllm_plugin.weights import translate_weights


class ObeyingAttention(builtin.OAIAttention):
    """The window of layers that slide by `layer_types`; RoPE with the checkpoint's own attention factor."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.rope_parameters.get("attention_factor") is not None:
            self.rotary_emb = get_rope(
                self.head_dim,
                max_position=config.max_position_embeddings,
                dtype=torch.float32,
                rope_parameters=config.rope_parameters,
                is_neox_style=self.rope_is_neox_style,
            )

    def _build_attention(self, config: Any, cache_config: Any, quant_config: Any, prefix: str) -> Attention:
        window = config.sliding_window if config.layer_types[self.layer_idx] == SLIDING else None
        return Attention(
            self.num_local_attention_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_local_key_value_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=window,
            prefix=f"{prefix}.attn",
            sinks=self.sinks,
        )


class ObeyingBlock(builtin.TransformerBlock):
    attention_cls = ObeyingAttention

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        for norm in (self.input_layernorm, self.post_attention_layernorm):
            norm.variance_epsilon = vllm_config.model_config.hf_config.rms_norm_eps


class ObeyingModel(builtin.GptOssModel):
    block_cls = ObeyingBlock

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.norm.variance_epsilon = self.config.rms_norm_eps


class GptOssForCausalLM(builtin.GptOssForCausalLM):
    """What vLLM knows by this name. Constructing it gives vLLM's own model, unless `decide` has reasons against it,
    which the log then says; and vLLM's own as well where ours cannot be built.
    """

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        if policy.mode() == "off":
            return builtin.GptOssForCausalLM(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.lora_config is not None:
            lora_hooks.install_loader()
        decision = decide(vllm_config, download=True)
        if decision.config is not None:
            refuse_uneven(vllm_config, decision.config)
        ours = build_obeying(vllm_config, prefix, decision) if decision.reasons else None
        if decision.notes and speaks():
            whose = "vLLM's own" if ours is None else "its own"
            log.warning("gptoss-adapters: %s model class serves this checkpoint: %s", whose, "; ".join(decision.notes))
        if ours is not None:
            return ours
        model = builtin.GptOssForCausalLM(vllm_config=vllm_config, prefix=prefix)
        schedule(model, vllm_config)
        return model


def build_obeying(vllm_config: VllmConfig, prefix: str, decision: Decision) -> ObeyingForCausalLM | None:
    """None, after a warning, where our class cannot be built for a reason that nobody has foreseen: vLLM's is then to
    find no trace of it.
    """
    compilation = vllm_config.compilation_config
    kept = {name: copy.copy(value) for name, value in vars(compilation).items() if isinstance(value, dict | list)}
    try:
        return ObeyingForCausalLM(vllm_config=vllm_config, prefix=prefix, decision=decision)
    except GptOssError:  # a refusal, in words
        raise
    except Exception as error:
        if list_demands():
            raise
        log.warning("gptoss-adapters: vLLM's own model class serves this checkpoint: %s", describe(error))
    for name, value in kept.items():  # the objects themselves stay: others hold them
        now = getattr(compilation, name)
        now.clear()
        now.update(value) if isinstance(value, dict) else now.extend(value)
    return None


def speaks() -> bool:
    """Whether this is the rank of its machine that says what all of them do."""
    return not model_parallel_is_initialized() or get_world_group().local_rank == 0


class ObeyingForCausalLM(builtin.GptOssForCausalLM):
    """vLLM's model with the pieces above, in the checkpoint's own config."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", decision: Decision) -> None:
        nn.Module.__init__(self)
        if speaks():
            log.info("gptoss-adapters: its own model class serves this checkpoint: %s", "; ".join(decision.reasons))
        object.__setattr__(self, "decision", decision)
        self.vllm_config = obey(vllm_config, decision)
        self.config = self.vllm_config.model_config.hf_config
        self.model = ObeyingModel(vllm_config=self.vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            self.config.vocab_size, self.config.hidden_size, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.logits_processor = LogitsProcessor(self.config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        schedule(self, vllm_config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The first time from the checkpoint's files where vLLM does not know their names; later ones are the
        caller's.
        """
        decision: Decision = self.__dict__["decision"]
        if decision.checkpoint is not None:
            self.__dict__["decision"] = replace(decision, checkpoint=None)
            self.__dict__["checkpoint"] = decision.checkpoint
            self.__dict__["read_packed"] = open_quantised(decision.checkpoint) if decision.quantise else None
            weights = translate_weights(decision.checkpoint, self.__dict__["read_packed"])
        loaded: set[str] = super().load_weights(weights)
        missing = [name for name, _ in self.named_parameters() if name not in loaded]
        if missing:
            log.warning(
                "gptoss-adapters: %d parameters were not in the checkpoint, such as %s", len(missing), missing[0]
            )
        return loaded


def obey(vllm_config: VllmConfig, decision: Decision) -> VllmConfig:
    """A copy in which the config says outright what the built-in classes would assume, and the experts' method is
    ours.
    """
    from gptoss_adapters.vllm_plugin.quantization import DenseConstants, GptOssMxfp4

    config = decision.config
    assert config is not None  # nothing to obey else
    changed = copy.copy(vllm_config)
    changed.model_config = copy.copy(vllm_config.model_config)
    hf = changed.model_config.hf_config = copy.deepcopy(vllm_config.model_config.hf_config)
    hf.layer_types = list(config.layer_types)
    hf.num_local_experts = config.num_experts
    hf.num_experts_per_tok = config.experts_per_token
    hf.rms_norm_eps = config.rms_norm_eps
    hf.sliding_window = config.sliding_window
    hf.rope_parameters = to_rope_parameters(config)
    if decision.packed is None:  # another quantisation: it stays what and where it is
        return changed
    if decision.packed:
        changed.quant_config = GptOssMxfp4(config.swiglu_alpha, config.swiglu_limit)
        hf.quantization_config = {"quant_method": GptOssMxfp4.get_name()}
    else:
        standard = (config.swiglu_alpha, config.swiglu_limit) == (SWIGLU_ALPHA, SWIGLU_LIMIT)
        builtin_experts = standard and not takes_adapters(vllm_config)
        changed.quant_config = None if builtin_experts else DenseConstants(config.swiglu_alpha, config.swiglu_limit)
        if hasattr(hf, "quantization_config"):
            del hf.quantization_config
    return changed


def to_rope_parameters(config: GptOssConfig) -> dict[str, Any]:
    """vLLM's spelling with every key. Without YaRN: a factor of 1, with which YaRN is plain RoPE."""
    context = config.initial_context_length if config.uses_yarn else config.max_position_embeddings
    return {
        "rope_type": "yarn",
        "rope_theta": config.rope_theta,
        "factor": config.rope_scaling_factor,
        "original_max_position_embeddings": context,
        "beta_fast": config.yarn_beta_fast,
        "beta_slow": config.yarn_beta_slow,
        "truncate": config.yarn_truncate,
        **({} if config.attention_factor is None else {"attention_factor": config.attention_factor}),
    }


def __getattr__(name: str) -> Any:
    """The class under the names that `registry` gives it, one for each vLLM."""
    if name.startswith(f"{ARCHITECTURE}_vllm_"):
        return GptOssForCausalLM
    raise AttributeError(f"module {__name__} has no attribute {name}")
