"""What this package can put into a vLLM, hook by hook, and what each of them needs of it.

Each decides for itself by probing names and signatures; vLLM's version decides nothing. A hook whose needs are not met
stays out, and so does what builds on it; the others work. No switch changes that: a hook that does not fit would break
what vLLM does alone. `force` takes a place that another plugin has, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gptoss_adapters.vllm_plugin import log, policy
from gptoss_adapters.vllm_plugin.probing import Need, Sources, find_obstacle

LAYERS, MOE = "vllm.model_executor.layers", "vllm.model_executor.layers.fused_moe"
GPT_OSS, HARMONY = "vllm.model_executor.models.gpt_oss", "vllm.parser.harmony"
PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
XGRAMMAR = "vllm.v1.structured_output.backend_xgrammar"
APPLIED = ("layer", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input")
CREATED = ("layer", "num_experts", "hidden_size", "intermediate_size_per_partition", "params_dtype")
CONSTANTS = ("mxfp4_backend", "w1_scale", "w2_scale", "w1_bias", "w2_bias", "gemm1_alpha", "gemm1_beta")
ATTENTION = ("num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "quant_config", "prefix")


@dataclass(frozen=True)
class Hook:
    """`module`: of this package; its `install()` registers one thing, lazily, and may be called again. Its
    `find_conflict()` says why it must not, or "". None: `after` is what brings it in. `after`: hooks that must be in.
    """

    name: str
    what: str
    needs: tuple[Need, ...]
    module: str | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a hook is in, and else why not."""

    hook: Hook
    why_not: str

    @property
    def is_in(self) -> bool:
        return not self.why_not


EXPERTS = Hook(
    "experts",
    "MXFP4 experts where vLLM's own do not compute, or compute with other constants",
    (
        Need(f"{MOE}:FusedMoEConfig.in_dtype"),
        Need(f"{MOE}:FusedMoEMethodBase.apply", APPLIED, replaced=True),
        Need(f"{MOE}:FusedMoEMethodBase.create_weights", CREATED),
        Need(f"{MOE}:FusedMoEMethodBase.get_fused_moe_quant_config", ("layer",), replaced=True),
        Need(f"{MOE}.unquantized_fused_moe_method:UnquantizedFusedMoEMethod.apply", APPLIED, replaced=True),
        Need("vllm.forward_context:get_forward_context", ()),
        Need("vllm.model_executor.utils:replace_parameter"),
        Need("vllm.model_executor.utils:set_weight_attrs"),
        Need(f"{LAYERS}.quantization.mxfp4:GptOssMxfp4MoEMethod"),
        Need(f"{MOE}.oracle.mxfp4:TRITON_BACKENDS"),
        Need(f"{MOE}.oracle.mxfp4:make_mxfp4_moe_quant_config", (*CONSTANTS, "swiglu_limit", "layer")),
        Need(f"{MOE}.experts.cpu_moe:CPUExpertsMxfp4._supports_current_device"),
    ),
)
QUANTIZATION = Hook(
    "quantization",
    "vLLM gives MXFP4 checkpoints to these experts, where its own would refuse",
    (
        Need(f"{LAYERS}.quantization:QUANTIZATION_METHODS"),
        Need(f"{LAYERS}.quantization:register_quantization_config", ("quantization",)),
        Need(f"{LAYERS}.quantization:get_quantization_config", ("quantization",)),
        Need(
            f"{LAYERS}.quantization.base_config:QuantizationConfig.override_quantization_method",
            ("hf_quant_cfg", "user_quant", "hf_config"),
            replaced=True,
        ),
        Need(
            f"{LAYERS}.quantization.base_config:QuantizationConfig.maybe_update_config",
            ("model_name", "hf_config", "revision"),
            replaced=True,
        ),
        Need(
            f"{LAYERS}.quantization.base_config:QuantizationConfig.get_quant_method",
            ("layer", "prefix"),
            replaced=True,
        ),
        Need(f"{MOE}:RoutedExperts"),
        Need(f"{LAYERS}.linear:UnquantizedLinearMethod"),
    ),
    "quantization",
    ("experts",),
)
MODEL = Hook(
    "model",
    "configs that vLLM's model ignores; fine-tunes' layouts; parallel sizes refused in words",
    (
        Need("vllm:ModelRegistry.register_model", ("model_arch", "model_cls")),
        Need(f"{GPT_OSS}:OAIAttention.rope_is_neox_style"),
        Need(f"{GPT_OSS}:OAIAttention._build_attention", ("config", "cache_config", "quant_config", "prefix")),
        Need(f"{GPT_OSS}:TransformerBlock.attention_cls"),
        Need(f"{GPT_OSS}:GptOssModel.block_cls"),
        Need(f"{GPT_OSS}:GptOssModel", ("vllm_config", "prefix"), replaced=True),
        Need(f"{GPT_OSS}:GptOssForCausalLM", ("vllm_config", "prefix"), replaced=True),
        Need(f"{GPT_OSS}:GptOssForCausalLM.load_weights", ("weights",), replaced=True),
        Need(
            f"{GPT_OSS}:GptOssForCausalLM.forward",
            ("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
            replaced=True,
        ),
        Need(f"{LAYERS}.attention:Attention", (*ATTENTION, "per_layer_sliding_window")),
        Need(
            f"{LAYERS}.rotary_embedding:get_rope",
            ("head_size", "max_position", "dtype", "rope_parameters", "is_neox_style"),
        ),
        Need(f"{LAYERS}.logits_processor:LogitsProcessor", ("vocab_size",)),
        Need(f"{LAYERS}.vocab_parallel_embedding:ParallelLMHead", ("num_embeddings", "embedding_dim", "prefix")),
        Need("vllm.model_executor.models.utils:maybe_prefix", ("prefix", "name")),
        Need("vllm.distributed:get_ep_group", ()),
        Need("vllm.distributed:get_tensor_model_parallel_world_size", ()),
    ),
    "registry",
    ("experts",),
)
PARSER = Hook(
    "parser",
    "gpt-oss output through gptoss_harmony: neither a 500 nor a lost answer",
    (
        Need("vllm.reasoning:ReasoningParserManager.register_lazy_module", ("name", "module_path", "class_name")),
        Need("vllm.reasoning:ReasoningParserManager.reasoning_parsers"),
        Need("vllm.reasoning:ReasoningParserManager.lazy_parsers"),
        Need("vllm.reasoning.gptoss_reasoning_parser:GptOssReasoningParser"),
        Need(
            f"{HARMONY}:HarmonyParser.parse",
            ("model_output", "request", "enable_auto_tools", "model_output_token_ids"),
            replaced=True,
        ),
        Need(
            f"{HARMONY}:HarmonyParser.parse_delta",
            ("delta_text", "delta_token_ids", "request", "prompt_token_ids", "finished"),
            replaced=True,
        ),
        Need(f"{HARMONY}:HarmonyParser.process_chunk", ("token_ids",), replaced=True),
        Need(f"{HARMONY}:HarmonyParser.flush", (), replaced=True),
        Need(f"{HARMONY}:HarmonyParser.adjust_request", ("request",), replaced=True),
        Need(f"{HARMONY}:Segment", ("channel", "recipient", "delta", "completed_message")),
        Need(f"{HARMONY}:ChunkResult", ("segments", "reasoning_token_count")),
        Need(
            (
                "vllm.entrypoints.generate.base.protocol:DeltaFunctionCall",  # 0.29
                "vllm.entrypoints.openai.engine.protocol:DeltaFunctionCall",
            )
        ),
        Need(
            (
                "vllm.renderers.chat_utils:make_tool_call_id",  # 0.32
                "vllm.entrypoints.chat_utils:make_tool_call_id",
            )
        ),
        Need("vllm.entrypoints.openai.responses.protocol:ResponsesRequest"),
    ),
    "harmony_hooks",
)
TAGS = Hook(
    "tags",
    "demanded calls and answers by JSON schema held to a grammar that sees control tokens",
    (
        Need(f"{XGRAMMAR}:XgrammarBackend.compile_grammar", ("request_type", "grammar_spec")),
        Need(f"{XGRAMMAR}:XgrammarBackend.__post_init__", (), replaced=True),
        Need("vllm.v1.structured_output.backend_types:StructuredOutputOptions.STRUCTURAL_TAG"),
        Need("vllm.sampling_params:StructuredOutputsParams.structural_tag"),
    ),
    None,
    ("parser",),
)
LORA = Hook(
    "lora",
    "LoRA adapters of every tool served whole or refused in words; experts' adapters on CPUs",
    (
        Need("vllm.lora.worker_manager:WorkerLoRAManager._load_adapter", ("lora_request",), replaced=True),
        Need(
            "vllm.lora.utils:from_layer",
            ("layer", "max_loras", "lora_config", "packed_modules_list", "model_config"),
            replaced=True,
        ),
        Need(
            "vllm.lora.lora_model:LoRAModel.from_lora_tensors",
            ("lora_model_id", "tensors", "peft_helper", "device", "dtype", "model_vocab_size", "weights_mapper"),
        ),
        Need("vllm.lora.peft_helper:PEFTHelper.from_dict", ("config_dict",)),
        Need(f"{PUNICA}._shrink_prefill", ("y", "x", "w_t_all", "scale"), replaced=True),
        Need(f"{PUNICA}._shrink_decode", ("y", "x", "w_t_all", "scale"), replaced=True),
        Need("vllm.lora.layers.fused_moe:FusedMoE3DWithLoRA.set_lora", ("index", "lora_a", "lora_b")),
        Need("vllm.lora.resolver:LoRAResolverRegistry"),
    ),
    "lora_hooks",
    ("model",),
)
METRICS = Hook("metrics", "repairs, cut calls, held answers and SELFCHECK's verdict in /metrics", (), "metrics")
HOOKS = (EXPERTS, QUANTIZATION, MODEL, PARSER, TAGS, METRICS, LORA)  # what a hook comes after stands before it


def judge(sources: Sources | None = None) -> list[Verdict]:
    """A verdict on each hook: for the vLLM of this process, with what others have registered in it, or by `sources`
    alone.
    """
    read = sources or Sources()
    verdicts: dict[str, Verdict] = {}
    for hook in HOOKS:
        stopped = [name for name in hook.after if name in verdicts and not verdicts[name].is_in]
        why_not = f"needs {stopped[0]}" if stopped else find_obstacle(hook.needs, read)
        if not why_not and sources is None and policy.mode() != "force":
            why_not = _ask(hook, "find_conflict")
        verdicts[hook.name] = Verdict(hook, why_not)
    return list(verdicts.values())


def install(verdict: Verdict) -> Verdict:
    """Put a hook in. What goes wrong becomes the verdict: vLLM must start."""
    if not verdict.is_in:
        return verdict
    if policy.mode() == "force" and (conflict := _ask(verdict.hook, "find_conflict")) and policy.is_first_process():
        log.warning("gptoss-adapters takes over although %s (GPTOSS_ADAPTERS_VLLM=force)", conflict)
    return Verdict(verdict.hook, _ask(verdict.hook, "install"))


def _ask(hook: Hook, function: str) -> str:
    """What a function of the hook's module says, "" if all is well or there is none."""
    try:
        module = None if hook.module is None else import_module(f"{__package__}.{hook.module}")
        found: Any = getattr(module, function, None)
        return "" if found is None else found() or ""
    except Exception as error:  # whatever it is
        return f"{type(error).__name__}: {error}"
