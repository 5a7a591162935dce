"""Every key of PEFT's `adapter_config.json`: used, harmless, or refused by name; and every method of PEFT.

PEFT's own classes are the source; a test compares these tables with them, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping

USED = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "target_modules",
        "target_parameters",
        "trainable_token_indices",
        "use_rslora",
    }
)

HARMLESS: Mapping[str, str] = {
    "corda_config": "how CorDA is prepared; init_lora_weights says whether it was used",
    "ensure_weight_tying": "head and embedding of gpt-oss are not tied",
    "eva_config": "how EVA chose A; the base stays as it was",
    "inference_mode": "whether the adapter can be trained further",
    "loftq_config": "how LoftQ is prepared; init_lora_weights says whether it was used",
    "lora_dropout": "acts while training only",
    "lora_ga_config": "how LoRA-GA is prepared; init_lora_weights says whether it was used",
    "megatron_core": "the name of a package",
    "qalora_group_size": "acts with use_qalora only",
    "revision": "the base's; the base is named by the caller",
    "runtime_config": "where the computation runs",
    "task_type": "which head PEFT puts on; gpt-oss has one",
}

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "aLoRA (activated LoRA), which acts from its invocation tokens on and cannot be merged",
    "arrow_config": "Arrow, which routes between several adapters",
    "fan_in_fan_out": "fan_in_fan_out, for layers that gpt-oss does not have",
    "invocation_string": "aLoRA (activated LoRA), which acts from its invocation string on and cannot be merged",
    "kasa_config": "KaSA, which truncates the base",
    "layer_replication": "layer_replication, a model with other layers than the base",
    "lora_bias": "biases of its own (lora_bias)",
    "megatron_config": "Megatron's parallel layers, whose ranks hold parts",
    "monteclora_config": "MonteCLoRA, which samples around the adapter",
    "use_bdlora": "BD-LoRA, whose factors are block-diagonal",
    "use_dora": "DoRA, which rescales the base's rows",
    "use_qalora": "QALoRA, which pools the inputs",
    "velora_config": "VeLoRA, which we have not compared",
}
"""Key -> what it asks for. `invocation_string` is aLoRA's key before PEFT had one."""

KINDLY_INITIALISED = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Values of `init_lora_weights` that leave the base as it was; so do true, false and null."""

CHANGED_BASE: Mapping[str, str] = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
"""Beginnings of `init_lora_weights` with which PEFT subtracts the first B A from the base, or rounds the base."""

METHODS: Mapping[str, str] = {
    "ADALORA": "AdaLoRA",
    "ADAMSS": "AdaMSS",
    "ADAPTION_PROMPT": "an adaption prompt",
    "BEFT": "BEFT",
    "BOFT": "BOFT",
    "C3A": "C3A",
    "CARTRIDGE": "a cartridge",
    "CPT": "context-aware prompt tuning",
    "DEFT": "DEFT",
    "DELORA": "DeLoRA",
    "FOURIERFT": "FourierFT",
    "FROD": "FRoD",
    "GLORA": "GLoRA",
    "GRALORA": "GraLoRA",
    "HIRA": "HiRA",
    "HRA": "HRA",
    "IA3": "(IA)3",
    "LILY": "LiLY",
    "LN_TUNING": "tuning of the norms",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "MISS": "MiSS",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "OFT": "OFT",
    "OSF": "OSF",
    "PEANUT": "PEANuT",
    "POLY": "Poly",
    "PREFIX_TUNING": "prefix tuning",
    "PROMPT_TUNING": "prompt tuning",
    "PSOFT": "PSOFT",
    "PVERA": "PVeRA",
    "P_TUNING": "p-tuning",
    "RANDLORA": "RandLoRA",
    "ROAD": "RoAd",
    "SHADOW": "Shadow",
    "SHIRA": "SHiRA",
    "SUPERTUNING": "SuperTuning",
    "TINYLORA": "TinyLoRA",
    "TRAINABLE_TOKENS": "trainable tokens without LoRA",
    "UNILORA": "UniLoRA",
    "VBLORA": "VB-LoRA",
    "VERA": "VeRA",
    "WAVEFT": "WaveFT",
    "XLORA": "X-LoRA",
}
"""Values of `peft_type` other than LORA, as their papers spell them."""
