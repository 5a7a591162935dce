"""A model whose distributions are known, in memory and on disk.

Attention and experts add nothing in it (their output projections are zero), so the prediction after a token depends on
that token alone and is known in closed form: `logits = U (norm * E[t] / rms(E[t]))`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters import spellings
from gptoss_adapters.spec import GptOssConfig

SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
MERGED = 256  # the 256 bytes, one merged token ("ab"), the special tokens, padding
RETURN = MERGED + 1 + SPECIALS.index("<|return|>")
STOPPER = 7  # after this token, <|return|> is all but certain
CONFIG = GptOssConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=288,
    hidden_size=64,
    intermediate_size=32,
    head_dim=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    sliding_window=8,
    bos_token_id=MERGED + 1,
    eos_token_id=RETURN,
    pad_token_id=MERGED + 2,
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The embedding [V, H] and head [V, H] (exact in bf16), and what follows from them."""

    embedding: np.ndarray
    head: np.ndarray

    def logits(self, tokens: Any) -> np.ndarray:
        """float64 [T, V] after each of `tokens`."""
        x = self.embedding[np.asarray(tokens)].astype(np.float64)
        x /= np.sqrt((x**2).mean(axis=-1, keepdims=True) + CONFIG.rms_norm_eps)
        logits: np.ndarray = x @ self.head.astype(np.float64).T
        return logits


def make_known_model() -> KnownModel:
    """The model: random eighths, all but the bytes next to impossible, but for <|return|> after STOPPER."""
    random = np.random.RandomState(0)
    shape = (CONFIG.vocab_size, CONFIG.hidden_size)
    embedding, head = (np.rint(random.standard_normal(shape) * scale * 8) / 8 for scale in (1.0, 0.25))
    embedding[:, 0], embedding[:, 1] = 4, 0
    head[:, 0] = 0
    head[MERGED:, 0] = -8
    head[:, 1] = 0
    head[STOPPER, 0] = -8
    embedding[STOPPER, 1], head[RETURN, 1] = 16, 16
    return KnownModel(embedding.astype(np.float32), head.astype(np.float32))


def tensors(truth: KnownModel) -> dict[str, np.ndarray]:
    """Every tensor under its HF name, float32."""
    c, random = CONFIG, np.random.RandomState(2)
    out = {
        "model.embed_tokens.weight": truth.embedding,
        "lm_head.weight": truth.head,
        "model.norm.weight": np.ones(c.hidden_size),
    }
    for layer in range(c.num_hidden_layers):
        attention = {
            "q_proj": (c.q_rows, c.hidden_size),
            "k_proj": (c.kv_rows, c.hidden_size),
            "v_proj": (c.kv_rows, c.hidden_size),
            "o_proj": (c.hidden_size, c.q_rows),
        }
        parts: dict[str, np.ndarray] = {"self_attn.sinks": np.zeros(c.num_attention_heads)}
        for name, shape in attention.items():
            weight = np.zeros(shape) if name == "o_proj" else np.rint(random.standard_normal(shape) * 4) / 32
            parts |= {f"self_attn.{name}.weight": weight, f"self_attn.{name}.bias": np.zeros(shape[0])}
        e = c.num_experts
        h = c.hidden_size
        i = c.intermediate_size
        parts |= {
            "input_layernorm.weight": np.ones(h),
            "post_attention_layernorm.weight": np.ones(h),
            "mlp.router.weight": np.rint(random.standard_normal((e, h)) * 4) / 32,
            "mlp.router.bias": np.zeros(e),
            "mlp.experts.gate_up_proj": np.zeros((e, h, 2 * i)),
            "mlp.experts.gate_up_proj_bias": np.zeros((e, 2 * i)),
            "mlp.experts.down_proj": np.zeros((e, i, h)),
            "mlp.experts.down_proj_bias": np.zeros((e, h)),
        }
        out |= {f"model.layers.{layer}.{name}": value for name, value in parts.items()}
    return {name: value.astype(np.float32) for name, value in out.items()}


def write_hf(folder: Path, truth: KnownModel) -> Path:
    """An HF checkpoint (bf16 experts) without tokenizer; returns the folder."""
    import ml_dtypes
    from safetensors.numpy import save_file

    stored = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors(truth).items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(spellings.to_hf(CONFIG, mxfp4=False)))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [RETURN], "pad_token_id": CONFIG.pad_token_id})
    )
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.router": "ffn_gate_inp",
}


def write_gguf(folder: Path, truth: KnownModel) -> Path:
    """The same model as an F32 GGUF with a byte vocabulary; returns the file."""
    import gguf

    writer = gguf.GGUFWriter(folder / "known.gguf", "gpt-oss")
    _metadata(writer, gguf)
    for name, value in tensors(truth).items():
        for out, array in _gguf_tensor(name, value):
            writer.add_tensor(out, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "known.gguf"


def _gguf_tensor(name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    block, inner = "", name
    if name.startswith("model.layers."):
        layer, _, inner = name.removeprefix("model.layers.").partition(".")
        block = f"blk.{layer}."
    if inner == "self_attn.sinks":
        return [(f"{block}attn_sinks.weight", value)]
    if inner.startswith("mlp.experts."):  # all zeros: only the shape matters
        kind = "bias" if inner.endswith("_bias") else "weight"
        parts = ("ffn_down_exps",) if "down" in inner else ("ffn_gate_exps", "ffn_up_exps")
        width = value.shape[-1] // len(parts)
        shape = (len(value), width) if kind == "bias" else (len(value), width, value.shape[1])
        return [(f"{block}{part}.{kind}", np.zeros(shape, np.float32)) for part in parts]
    stem, _, kind = inner.rpartition(".")
    return [(f"{block}{_GGUF_NAMES[stem]}.{kind}", value)]


def _metadata(writer: Any, gguf: Any) -> None:
    c = CONFIG
    sizes = {
        "block_count": c.num_hidden_layers,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "expert_feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "expert_count": c.num_experts,
        "expert_used_count": c.experts_per_token,
        "attention.sliding_window": c.sliding_window,
        "rope.scaling.original_context_length": c.initial_context_length,
    }
    for key, size in sizes.items():
        writer.add_uint32(f"gpt-oss.{key}", size)
    for key, value in {
        "rope.freq_base": c.rope_theta,
        "rope.scaling.factor": c.rope_scaling_factor,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
    }.items():
        writer.add_float32(f"gpt-oss.{key}", value)
    writer.add_string("gpt-oss.rope.scaling.type", "yarn")
    normal = gguf.TokenType.NORMAL
    control = gguf.TokenType.CONTROL
    unused = gguf.TokenType.UNUSED
    texts = [*_byte_characters(), "ab", *SPECIALS]
    kinds = [normal] * (MERGED + 1) + [control] * len(SPECIALS) + [unused] * (c.vocab_size - len(texts))
    texts += [f"[PAD{i}]" for i in range(len(texts), c.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(c.bos_token_id)
    writer.add_eos_token_id(c.eos_token_id)
    writer.add_add_bos_token(False)


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level BPE: itself if visible, else the next of U+0100.. on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(spare)) for b in range(256)]
