"""Every kind of input checkpoint, made from a Hugging Face one in MXFP4 or bf16, with the names written out as each
tool writes them.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gptoss_adapters import mxfp4, spellings
from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint

BF16 = ml_dtypes.bfloat16
DTYPES = {np.dtype(np.uint8): "U8", np.dtype(BF16): "BF16", np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
MXFP4_KINDS = ("hf-mxfp4", "openai", "hf-quark", "hf-compressed-tensors")
DENSE_KINDS = ("hf-bf16", "hf-bf16-out-in", "hf-defused", "hf-linear-experts")
MIXED = "hf-mxfp4-mixed"
Arrays = dict[str, np.ndarray]


def save(path: Path, arrays: Arrays) -> None:
    header, at = {}, 0
    for name, a in arrays.items():
        header[name] = {"dtype": DTYPES[a.dtype], "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
    )


def write_kind(source: Path, kind: str, folder: Path, *, shards: int = 1, spelling: int = 4) -> Path:
    """`source` (HF MXFP4 or HF bf16) as a checkpoint of another safetensors kind in `folder`, in one or several
    files.
    """
    c = open_checkpoint(source)
    arrays = dict(_tensors(c, kind))
    folder.mkdir(parents=True)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    config: dict[str, Any] = (
        spellings.to_openai(c.config)
        if kind == "openai"
        else spellings.to_hf(c.config, mxfp4=kind in ("hf-mxfp4", MIXED), spelling=spelling)
    )
    if kind in ("hf-quark", "hf-compressed-tensors"):
        config["quantization_config"] = {"quant_method": kind.removeprefix("hf-")}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(arrays, key=lambda n: (len(n), n))  # blocks and scales, q and k end up in different shards
    if shards == 1:
        save(folder / "model.safetensors", {n: arrays[n] for n in names})
        return folder
    files = {n: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, n in enumerate(names)}
    for file in sorted(set(files.values())):
        save(folder / file, {n: arrays[n] for n in names if files[n] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def _tensors(c: Checkpoint, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    if kind == "openai":
        yield from _openai(c)
        return
    for ours, theirs in (("embedding", "model.embed_tokens"), ("norm", "model.norm"), ("unembedding", "lm_head")):
        yield f"{theirs}.weight", read_bf16(c, f"{ours}.weight")
    for n in range(c.config.num_hidden_layers):
        for ours, theirs in (("attn_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
            yield f"model.layers.{n}.{theirs}.weight", read_bf16(c, f"layers.{n}.{ours}.weight")
        for which in "qkvo":
            for what in ("weight", "bias"):
                yield f"model.layers.{n}.self_attn.{which}_proj.{what}", read_bf16(c, f"layers.{n}.{which}_proj.{what}")
        yield f"model.layers.{n}.self_attn.sinks", read_bf16(c, f"layers.{n}.sinks")
        router = "mlp.router.linear" if kind == "hf-defused" else "mlp.router"
        for what in ("weight", "bias"):
            yield f"model.layers.{n}.{router}.{what}", read_bf16(c, f"layers.{n}.router.{what}")
        for which in ("gate_up", "down"):
            yield from _experts(c, kind if kind != MIXED else "hf-mxfp4" if n else "hf-bf16", n, which)


def _experts(c: Checkpoint, kind: str, n: int, which: str) -> Iterator[tuple[str, np.ndarray]]:
    at, weight, bias = (
        f"model.layers.{n}.mlp.experts",
        f"layers.{n}.experts.{which}.weight",
        read_bf16(c, f"layers.{n}.experts.{which}.bias"),
    )
    if kind in ("hf-mxfp4", "hf-bf16", "hf-bf16-out-in"):
        yield f"{at}.{which}_proj_bias", bias
    if kind == "hf-mxfp4":
        blocks, scales = packed(c, weight)
        yield f"{at}.{which}_proj_blocks", blocks
        yield f"{at}.{which}_proj_scales", scales
    elif kind == "hf-bf16":
        yield f"{at}.{which}_proj", np.ascontiguousarray(read_bf16(c, weight).swapaxes(1, 2))
    elif kind == "hf-bf16-out-in":
        yield f"{at}.{which}_proj", read_bf16(c, weight)
    elif kind == "hf-defused":
        for e, w in enumerate(read_bf16(c, weight)):
            yield f"{at}.{which}_projs.{e}.weight", w
            yield f"{at}.{which}_projs.{e}.bias", bias[e]
    elif kind == "hf-linear-experts":
        for e, w in enumerate(read_bf16(c, weight)):
            for half, rows in halves(which):
                yield f"{at}.{e}.{half}_proj.weight", w[rows]
                yield f"{at}.{e}.{half}_proj.bias", bias[e][rows]
    else:
        yield from _packed_experts(kind, at, which, packed(c, weight), bias)


def halves(which: str) -> list[tuple[str, slice]]:
    """gate and up apart, by name and rows; down whole."""
    return [("gate", slice(0, None, 2)), ("up", slice(1, None, 2))] if which == "gate_up" else [("down", slice(None))]


def _packed_experts(
    kind: str, at: str, which: str, pair: tuple[np.ndarray, np.ndarray], bias: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """MXFP4, one expert at a time."""
    blocks, scales = pair
    for e in range(len(blocks)):
        flat = blocks[e].reshape(len(blocks[e]), -1)
        if kind == "hf-quark":
            yield f"{at}.{e}.{which}_proj.weight", flat
            yield f"{at}.{e}.{which}_proj.weight_scale", scales[e]
            yield f"{at}.{e}.{which}_proj.bias", bias[e]
            yield f"{at}.{e}.{which}_proj.input_scale", np.ones(1, np.float32)
        else:
            for half, rows in halves(which):
                yield f"{at}.{e}.{half}_proj.weight_packed", flat[rows]
                yield f"{at}.{e}.{half}_proj.weight_scale", scales[e][rows]
                yield f"{at}.{e}.{half}_proj.bias", bias[e][rows]


def _openai(c: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    yield "embedding.weight", read_bf16(c, "embedding.weight")
    yield "unembedding.weight", read_bf16(c, "unembedding.weight")
    yield "norm.scale", read_bf16(c, "norm.weight")
    for n in range(c.config.num_hidden_layers):
        at, ours = f"block.{n}", f"layers.{n}"
        yield f"{at}.attn.norm.scale", read_bf16(c, f"{ours}.attn_norm.weight")
        yield f"{at}.mlp.norm.scale", read_bf16(c, f"{ours}.mlp_norm.weight")
        yield f"{at}.attn.sinks", read_bf16(c, f"{ours}.sinks")
        for what in ("weight", "bias"):
            yield f"{at}.attn.qkv.{what}", np.concatenate([read_bf16(c, f"{ours}.{x}_proj.{what}") for x in "qkv"])
            yield f"{at}.attn.out.{what}", read_bf16(c, f"{ours}.o_proj.{what}")
            yield f"{at}.mlp.gate.{what}", read_bf16(c, f"{ours}.router.{what}")
        for which, mlp in (("gate_up", "mlp1"), ("down", "mlp2")):
            blocks, scales = packed(c, f"{ours}.experts.{which}.weight")
            yield f"{at}.mlp.{mlp}_weight.blocks", blocks
            yield f"{at}.mlp.{mlp}_weight.scales", scales
            yield f"{at}.mlp.{mlp}_bias", read_bf16(c, f"{ours}.experts.{which}.bias")


def read_bf16(c: Checkpoint, name: str) -> np.ndarray:
    return c.read(name, np.float32).astype(BF16)


def packed(c: Checkpoint, name: str) -> tuple[np.ndarray, np.ndarray]:
    if c.tensors[name].encoding == "mxfp4":
        blocks, scales = c.mxfp4(name)
        return np.ascontiguousarray(blocks), np.ascontiguousarray(scales)
    return mxfp4.encode(c.read(name, np.float32), rule="mse")
