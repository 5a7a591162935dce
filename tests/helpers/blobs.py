"""A checkpoint as a blob of Ollama's library, which is a GGUF in words of its own. Not a test module."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from helpers.kinds import packed, read_bf16


def write_blob(
    source: Path, path: Path, *, old_type: bool = False, fused: bool = False, vocabulary: bool = False
) -> Path:
    """`source` as a blob of Ollama's library: architecture gptoss, its own tensor names; `old_type`: MXFP4 as type 4
    with the nibbles as OpenAI stores them; `fused`: attn_qkv and interleaved ffn_gate_up_exps, expert biases in bf16
    (the oldest blobs).
    """
    c = open_checkpoint(source)
    blob = _Blob(c, gguf.GGUFWriter(path, "gptoss"), old_type, fused)
    blob.add_config()
    if vocabulary:
        blob.add_vocabulary()
    for ours, theirs in (("embedding", "token_embd"), ("norm", "output_norm"), ("unembedding", "output")):
        blob.dense(f"{theirs}.weight", read_bf16(c, f"{ours}.weight"))
    for n in range(c.config.num_hidden_layers):
        blob.add_attention(n)
        blob.add_experts(n)
    blob.writer.write_header_to_file()
    blob.writer.write_kv_data_to_file()
    blob.writer.write_tensors_to_file()
    blob.writer.close()
    if old_type:
        _patch_types(path)
    return path


class _Blob:
    def __init__(self, checkpoint: Checkpoint, writer: Any, old_type: bool, fused: bool) -> None:
        self.checkpoint, self.writer = checkpoint, writer
        self.old_type, self.fused = old_type, fused

    def add_config(self) -> None:
        g = self.checkpoint.config
        for key, value in {
            "context_length": g.max_position_embeddings,
            "block_count": g.num_hidden_layers,
            "embedding_length": g.hidden_size,
            "feed_forward_length": g.intermediate_size,
            "expert_count": g.num_experts,
            "expert_used_count": g.experts_per_token,
            "attention.head_count": g.num_attention_heads,
            "attention.head_count_kv": g.num_key_value_heads,
            "attention.key_length": g.head_dim,
            "attention.value_length": g.head_dim,
            "attention.sliding_window": g.sliding_window,
            "rope.scaling.original_context_length": g.initial_context_length,
        }.items():
            self.writer.add_uint32(f"gptoss.{key}", value)
        for key, value in {
            "attention.layer_norm_rms_epsilon": g.rms_norm_eps,
            "rope.freq_base": g.rope_theta,
            "rope.scaling.factor": g.rope_scaling_factor,
        }.items():
            self.writer.add_float32(f"gptoss.{key}", value)
        self.writer.add_uint32("general.file_type", 4)

    def add_vocabulary(self) -> None:
        """As Ollama's converter wrote it: <|endoftext|> as eos, the stops in a list, no template, no splitting rule."""
        size = self.checkpoint.config.vocab_size
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre("default")
        self.writer.add_token_list([f"t{i}" for i in range(size)])
        self.writer.add_token_types([1] * size)
        self.writer.add_token_merges(["t 1", "t 2"])
        self.writer.add_uint32("tokenizer.ggml.eos_token_id", 199999)
        self.writer.add_array("tokenizer.ggml.eos_token_ids", [199999, 200002, 200012])

    def dense(self, name: str, array: np.ndarray) -> None:
        matrix = array.ndim > 1 and "_exps" not in name and "gate_inp" not in name
        if matrix or (self.fused and "_exps" in name):
            self.writer.add_tensor(
                name, np.ascontiguousarray(array).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
        else:
            self.writer.add_tensor(name, np.ascontiguousarray(array.astype(np.float32)))

    def experts(self, name: str, blocks: np.ndarray, scales: np.ndarray) -> None:
        if self.old_type:
            rows = np.concatenate((scales[..., None], blocks), axis=-1).reshape(*scales.shape[:-1], -1)
        else:
            rows = mxfp4.hf_to_ggml(blocks, scales).reshape(*scales.shape[:-1], -1)
        self.writer.add_tensor(name, np.ascontiguousarray(rows), raw_dtype=gguf.GGMLQuantizationType.MXFP4)

    def add_attention(self, n: int) -> None:
        """The norms, attention and router of layer `n`."""
        c, at, ours = self.checkpoint, f"blk.{n}", f"layers.{n}"
        self.dense(f"{at}.attn_norm.weight", read_bf16(c, f"{ours}.attn_norm.weight"))
        self.dense(f"{at}.ffn_norm.weight", read_bf16(c, f"{ours}.mlp_norm.weight"))
        self.dense(f"{at}.attn_sinks", read_bf16(c, f"{ours}.sinks"))
        for what in ("weight", "bias"):
            parts = {x: read_bf16(c, f"{ours}.{x}_proj.{what}") for x in "qkv"}
            if self.fused:
                self.dense(f"{at}.attn_qkv.{what}", np.concatenate(list(parts.values())))
            else:
                for x, part in parts.items():
                    self.dense(f"{at}.attn_{x}.{what}", part)
            self.dense(f"{at}.attn_out.{what}", read_bf16(c, f"{ours}.o_proj.{what}"))
            self.dense(f"{at}.ffn_gate_inp.{what}", read_bf16(c, f"{ours}.router.{what}"))

    def add_experts(self, n: int) -> None:
        c, at, ours = self.checkpoint, f"blk.{n}", f"layers.{n}"
        gate_up, down = (packed(c, f"{ours}.experts.{w}.weight") for w in ("gate_up", "down"))
        self.experts(f"{at}.ffn_down_exps.weight", *down)
        self.dense(f"{at}.ffn_down_exps.bias", read_bf16(c, f"{ours}.experts.down.bias"))
        bias = read_bf16(c, f"{ours}.experts.gate_up.bias")
        if self.fused:
            self.experts(f"{at}.ffn_gate_up_exps.weight", *gate_up)
            self.dense(f"{at}.ffn_gate_up_exps.bias", bias)
        else:
            for k, half in enumerate(("gate", "up")):
                self.experts(f"{at}.ffn_{half}_exps.weight", gate_up[0][:, k::2], gate_up[1][:, k::2])
                self.dense(f"{at}.ffn_{half}_exps.bias", bias[:, k::2])


def _patch_types(path: Path) -> None:
    """gguf-py knows no type 4 for MXFP4: the number is changed in the list of tensors."""
    data = bytearray(path.read_bytes())
    for t in gguf.GGUFReader(path).tensors:
        if t.tensor_type == gguf.GGMLQuantizationType.MXFP4:
            name = struct.pack("<Q", len(t.name)) + t.name.encode()
            at = data.index(name) + len(name)
            at += 4 + 8 * struct.unpack_from("<I", data, at)[0]
            assert struct.unpack_from("<I", data, at)[0] == 39
            struct.pack_into("<I", data, at, 4)
    path.write_bytes(data)
