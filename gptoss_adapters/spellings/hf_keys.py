"""Every key of an HF `config.json` that we know: read, without effect on what the model computes (why), or refused.

The list is the one of transformers' GptOssConfig (5.24) and of the programs that write such files; a test compares it
with the installed class, both ways. A key that is not on it is named, and refused where it holds one entry a layer: an
architecture that nobody here knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_adapters.errors import BadInput
from gptoss_adapters.spellings.hf_rope import ROPE_KEYS, name_odd_rope

SAME = (  # spelled as ours, and never null
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "rms_norm_eps",
    "swiglu_limit",
    "swiglu_alpha",
)
READ = (
    *SAME,
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "experts_per_token",  # of the published files
    "layer_types",
    "max_position_embeddings",
    *ROPE_KEYS,
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "model_type",
    "quantization_config",
    "quantization",  # of MLX
    "auto_map",
    "block_configs",  # of gpt_oss_puzzle
    "per_layer_config",
)
ONLY = {  # the one value that a gpt-oss model can have, and what another would mean
    "tie_word_embeddings": (False, "gpt-oss has an output head of its own"),
    "attention_bias": (True, "gpt-oss has biases on its attention's projections"),
    "is_encoder_decoder": (False, "gpt-oss is a decoder"),
    "is_decoder": (True, "gpt-oss is a decoder"),
    "add_cross_attention": (False, "gpt-oss attends to itself only"),
}
NEUTRAL = {  # what would change other models: without effect, and named unless it says this
    "hidden_act": ("silu", "the experts compute their own clamped SwiGLU"),
}
HARMLESS = {  # key -> why it changes nothing that the model computes
    "initializer_range": "for training from nothing",
    "attention_dropout": "for training",
    "router_aux_loss_coef": "for training",
    "output_router_logits": "what a call returns",
    "output_hidden_states": "what a call returns",
    "output_attentions": "what a call returns",
    "return_dict": "what a call returns",
    "use_cache": "how a program generates",
    "chunk_size_feed_forward": "how a program computes, with the same result",
    "attn_implementation": "how a program computes, with the same result",
    "experts_implementation": "how a program computes, with the same result",
    "dtype": "each tensor says its own",
    "torch_dtype": "each tensor says its own",
    "architectures": "checked apart: a class with another head is refused",
    "transformers_version": "who wrote the file",
    "name_or_path": "where the model came from",
    "_name_or_path": "where the model came from",
    "_commit_hash": "where the model came from",
    "id2label": "names of a classifier's outputs, and this is none",
    "label2id": "names of a classifier's outputs, and this is none",
    "num_labels": "names of a classifier's outputs, and this is none",
    "problem_type": "a classifier's loss, and this is none",
    "initial_context_length": "transformers reads RoPE's own original_max_position_embeddings",
    "unsloth_version": "who wrote the file",
    "unsloth_fixed": "who wrote the file",
}
GENERATION = (  # settings of sampling: transformers takes them from generation_config.json
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)
KNOWN = {*READ, *ONLY, *NEUTRAL, *HARMLESS, *GENERATION}
LM_CLASSES = ("GptOssForCausalLM", "GptOssModel", "GptOssPuzzleForCausalLM")


def check_keys(raw: Mapping[str, Any], file: str | None = None) -> None:
    """Raises BadInput for a key whose value says that this is not a gpt-oss language model."""
    for key, (wanted, why) in ONLY.items():
        if raw.get(key, wanted) not in (wanted, None):
            raise BadInput(f"config field {key} is {_word(raw[key])}; {why}", file=file)
    layers = raw.get("num_hidden_layers")
    for key, value in raw.items():
        if key in KNOWN or not isinstance(value, list | dict) or len(value) != layers or _are_words(value):
            continue
        raise BadInput(
            f"config field {key} has one entry for each layer, and is not one of gpt-oss: the architecture is unknown",
            file=file,
        )


def name_odd_keys(raw: Mapping[str, Any]) -> list[str]:
    """What the config says and nothing here obeys, in words; `raw` passed `check_keys`."""
    return [*name_odd_rope(raw), *_name_odd_values(raw), *_name_unknown(raw)]


def _name_odd_values(raw: Mapping[str, Any]) -> Iterator[str]:
    for key, (usual, why) in NEUTRAL.items():
        if raw.get(key, usual) not in (usual, None):
            yield f"{key} {_word(raw[key])} is without effect: {why}"
    classes = raw.get("architectures")
    if isinstance(classes, list) and (other := [str(name) for name in classes if name not in LM_CLASSES]):
        yield f"architectures names {', '.join(other)}: read as GptOssForCausalLM"


def _name_unknown(raw: Mapping[str, Any]) -> Iterator[str]:
    unknown = sorted(key for key in raw if key not in KNOWN)
    if unknown:
        shown = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        yield f"keys that are not of gpt-oss are without effect here: {shown}"


def _are_words(value: list[Any] | dict[str, Any]) -> bool:
    """Labels and names, of which a list may have as many entries as the model has layers."""
    return all(isinstance(v, str) for v in (value.values() if isinstance(value, dict) else value))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
