"""Adapters as tools other than PEFT write them, in shards too, for the tiny preset of peft_cases.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from helpers.adapters import rand
from helpers.peft_cases import TINY

E, H, V = TINY.num_experts, TINY.hidden_size, TINY.vocab_size
INNER = TINY.intermediate_size
HF = "base_model.model.model.layers"
Arrays = dict[str, np.ndarray]


def made_by_mlx(out: Path, tensors: Arrays, rank: int = 2, scale: float = 20.0, **config: Any) -> Path:
    out.mkdir(parents=True)
    save_file(tensors, out / "adapters.safetensors")
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    values = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "iters": 100, **config}
    (out / "adapter_config.json").write_text(json.dumps(values))
    return out


def mlx_tensors() -> Arrays:
    at = "model.layers.1"
    return {
        f"{at}.self_attn.q_proj.lora_a": rand(H, 2),
        f"{at}.self_attn.q_proj.lora_b": rand(2, TINY.q_rows, seed=1),
        f"{at}.mlp.router.lora_a": rand(H, 2, seed=2),
        f"{at}.mlp.router.lora_b": rand(2, E, seed=3),
        f"{at}.mlp.experts.gate_proj.lora_a": rand(E, 2, H, seed=4),
        f"{at}.mlp.experts.gate_proj.lora_b": rand(E, INNER, 2, seed=5),
        f"{at}.mlp.experts.up_proj.lora_a": rand(E, 2, H, seed=6),
        f"{at}.mlp.experts.up_proj.lora_b": rand(E, INNER, 2, seed=7),
        f"{at}.mlp.experts.down_proj.lora_a": rand(E, 2, INNER, seed=8),
        f"{at}.mlp.experts.down_proj.lora_b": rand(E, H, 2, seed=9),
        "model.embed_tokens.lora_a": rand(V, 2, seed=10),
        "model.embed_tokens.lora_b": rand(2, H, seed=11),
        "lm_head.lora_a": rand(H, 2, seed=12),
        "lm_head.lora_b": rand(2, V, seed=13),
    }


def made_by_llama_cpp(out: Path, tensors: Arrays, alpha: float | None = 8.0, **keys: Any) -> Path:
    """With the names and keys of convert_lora_to_gguf.py, by gguf-py as there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(out, keys.pop("arch", "gpt-oss"))
    writer.add_type(keys.pop("type", "adapter"))
    writer.add_string("adapter.type", keys.pop("adapter_type", "lora"))
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in keys.items():
        writer.add_array(key.replace("__", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def gguf_tensors() -> Arrays:
    return {
        "blk.1.attn_q.weight.lora_a": rand(2, H),
        "blk.1.attn_q.weight.lora_b": rand(TINY.q_rows, 2, seed=1),
        "blk.0.attn_output.weight.lora_a": rand(2, TINY.q_rows, seed=2).astype(np.float16),
        "blk.0.attn_output.weight.lora_b": rand(H, 2, seed=3).astype(np.float16),
        "blk.0.ffn_gate_inp.weight.lora_a": rand(2, H, seed=4),
        "blk.0.ffn_gate_inp.weight.lora_b": rand(E, 2, seed=5),
        "blk.0.ffn_up_exps.weight.lora_a": rand(E, 2, H, seed=6),
        "blk.0.ffn_up_exps.weight.lora_b": rand(E, INNER, 2, seed=7),
        "blk.0.ffn_down_exps.weight.lora_a": rand(E, 2, INNER, seed=8),
        "blk.0.ffn_down_exps.weight.lora_b": rand(E, H, 2, seed=9),
        "output.weight.lora_a": rand(2, H, seed=10),
        "output.weight.lora_b": rand(V, 2, seed=11),
        "token_embd.weight.lora_a": rand(V, 2, seed=12),
        "token_embd.weight.lora_b": rand(H, 2, seed=13),
    }


def split(adapter: Path, indexed: bool) -> Path:
    """Two shards in place of one file."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"adapter_model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, adapter / shard)
    if indexed:
        table = {name: shard for shard, held in shards.items() for name in held}
        (adapter / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return adapter


def peft_tensors() -> Arrays:
    return {
        f"{HF}.0.self_attn.q_proj.lora_A.weight": rand(2, H),
        f"{HF}.0.self_attn.q_proj.lora_B.weight": rand(TINY.q_rows, 2, seed=1),
        f"{HF}.1.self_attn.o_proj.lora_A.weight": rand(2, TINY.q_rows, seed=2),
        f"{HF}.1.self_attn.o_proj.lora_B.weight": rand(H, 2, seed=3),
    }
