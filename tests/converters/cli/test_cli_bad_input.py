"""`gptoss-convert` on damaged checkpoints: exit code 3, one line that names the trouble, nothing left behind."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.convert_cli import run
from helpers.crafted import copy, sharded, with_config, with_tensors

DOWN = "model.layers.2.mlp.experts.down_proj"


# Each case damages a checkpoint folder; the one line must hold these words.
def cut(folder: Path, name: str = "model.safetensors", by: int = 1) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-by])


def header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + n])
    change(head)
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


def set_shape(name: str, shape: list[int]) -> Callable[[Path], object]:
    return lambda f: header(f, lambda h: h[name].update(shape=shape))


def scale_255(folder: Path) -> None:
    def change(t: dict[str, Any]) -> None:
        dtype, shape, data = t[f"{DOWN}_scales"]
        t[f"{DOWN}_scales"] = (dtype, shape, data[:77] + b"\xff" + data[78:])

    with_tensors(folder, change)


def nan_in(name: str) -> Callable[[Path], object]:
    def change(t: dict[str, Any]) -> None:
        dtype, shape, data = t[name]
        t[name] = (dtype, shape, data[:-2] + b"\xc0\x7f")

    return lambda f: with_tensors(f, change)


def replace(name: str, text: str) -> Callable[[Path], object]:
    return lambda f: (f / name).write_text(text)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "tokenizer.json").read_text())
        change(raw)
        (folder / "tokenizer.json").write_text(json.dumps(raw))

    return apply


def index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        sharded(folder, lambda n: 0 if "layers.0" in n else 1)
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return apply


def missing_shard(folder: Path) -> None:
    sharded(folder, lambda n: 0 if "layers.0" in n else 1)
    (folder / "model-00002-of-00002.safetensors").unlink()


def config(**fields: Any) -> Callable[[Path], object]:
    return lambda f: with_config(f, lambda c: c.update(fields))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda f: with_tensors(f, lambda t: t.update({new: t.pop(old)}))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated file": (cut, r"model.safetensors: .*(truncated|past the end)"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "header length beyond any": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}"),
        "the header is too large",
    ),
    "header length past the end": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x09" + bytes(7) + b"{}"),
        "header runs past the end of the file .expected 9 bytes, got 2",
    ),
    "too short": (lambda f: (f / "model.safetensors").write_bytes(bytes(7)), "the file is too short for a checkpoint"),
    "trailing bytes": (lambda f: (f / "model.safetensors").open("ab").write(b"x"), "trailing bytes"),
    "overlapping tensors": (
        lambda f: header(f, lambda h: h["lm_head.weight"].update(data_offsets=h["model.norm.weight"]["data_offsets"])),
        "lm_head|norm",
    ),
    "missing scales": (
        lambda f: with_tensors(f, lambda t: t.pop(f"{DOWN}_scales")),
        f"{DOWN}_scales: the tensor is missing",
    ),
    "missing blocks": (
        lambda f: with_tensors(f, lambda t: t.pop(f"{DOWN}_blocks")),
        f"{DOWN}_blocks: the tensor is missing",
    ),
    "missing sinks": (
        lambda f: with_tensors(f, lambda t: t.pop("model.layers.1.self_attn.sinks")),
        "layers.1.self_attn.sinks: the tensor is missing",
    ),
    "missing head": (
        lambda f: with_tensors(f, lambda t: t.pop("lm_head.weight")),
        "lm_head.weight: the tensor is missing",
    ),
    "unknown tensor": (rename("model.norm.weight", "model.norm.wait"), "model.norm.wait: unexpected tensor"),
    "wrong dtype": (
        lambda f: header(f, lambda h: h["model.norm.weight"].update(dtype="U16")),
        "model.norm.weight: wrong dtype",
    ),
    "transposed": (set_shape("lm_head.weight", [96, 512]), "lm_head.weight: the shape does not fit the config"),
    "transposed blocks": (
        set_shape(f"{DOWN}_blocks", [8, 2, 96, 16]),
        f"{DOWN}_blocks: the shape does not fit the config",
    ),
    "scale byte 255": (scale_255, rf"model.safetensors: {DOWN}_scales: holds MXFP4 scale bytes of 255"),
    "NaN in a bias": (nan_in("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias: holds NaN or Inf"),
    "NaN in the embedding": (nan_in("model.embed_tokens.weight"), "embed_tokens.weight: holds NaN or Inf"),
    "config with more layers": (config(num_hidden_layers=5, layer_types=None), "layers.4.* the tensor is missing"),
    "config with fewer layers": (config(num_hidden_layers=3, layer_types=None), "layers.3.* unexpected tensor"),
    "config with other experts": (config(num_local_experts=4), "another number of experts"),
    "config with another vocabulary": (config(vocab_size=500), "does not fit the config"),
    "config is not JSON": (replace("config.json", "{"), r"config.json: the JSON is malformed"),
    "config is a list": (replace("config.json", "[]"), "config.json: the JSON must be an object"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "another architecture": (config(model_type="llama"), "model_type is not one of gpt-oss"),
    "auto_map": (config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "tied embeddings": (config(tie_word_embeddings=True), "tie_word_embeddings"),
    "layer_types too short": (config(layer_types=["full_attention"]), "layer_types must have 4 entries"),
    "layer_types unknown": (config(layer_types=["chunked_attention"] * 4), "layer_types"),
    "top-k above the experts": (config(num_experts_per_tok=9), "experts_per_token exceeds"),
    "theta is a word": (config(rope_theta="big"), "rope_theta must be a number"),
    "theta beyond float32": (config(rope_theta=1e300), "rope_theta must be a"),
    "eps below float32": (config(rms_norm_eps=1e-60), "rms_norm_eps must be a positive number that float32 holds"),
    "a factor that shrinks": (
        lambda f: with_config(f, lambda c: c["rope_scaling"].update(factor=0.5)),
        "rope_scaling_factor must be at least 1",
    ),
    "a factor of which YaRN makes 0": (
        lambda f: with_config(f, lambda c: c["rope_scaling"].update(factor=math.exp(-10), attention_factor=1.0)),
        "rope_scaling_factor must be at least 1",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"no tokenizer.json beside the weights: add --tokenizer",
    ),
    "tokenizer of another family": (
        tokenizer(lambda t: t.update(pre_tokenizer=None)),
        "pre_tokenizer is not the one of gpt-oss",
    ),
    "tokenizer without merges": (tokenizer(lambda t: t["model"].pop("merges")), "not a byte-level BPE tokenizer"),
    "tokenizer with broken merges": (
        tokenizer(lambda t: t["model"]["merges"].append(["a", 1])),
        "merges is malformed after 224 merges",
    ),
    "tokenizer with ids past the vocabulary": (
        tokenizer(lambda t: t["model"]["vocab"].update(zzz=512)),
        "id lies outside the vocabulary",
    ),
    "tokenizer with one id twice": (
        tokenizer(lambda t: t["model"]["vocab"].update(zzz=5)),
        "two tokens have the same id",
    ),
    "tokenizer without list of added tokens": (
        tokenizer(lambda t: t.update(added_tokens=None)),
        "tokenizer.json: added_tokens is malformed",
    ),
    "added token without id": (
        tokenizer(lambda t: t["added_tokens"][0].pop("id")),
        "tokenizer.json: added_tokens is malformed",
    ),
    "added token that is a list": (
        tokenizer(lambda t: t["added_tokens"][0].update(content=["a"])),
        "tokenizer.json: added_tokens is malformed",
    ),
    "surrogate in a token": (
        tokenizer(lambda t: t["model"]["vocab"].update({"\ud800": 505})),
        "tokenizer.json: a token is not UTF-8",
    ),
    "surrogate in a merge": (
        tokenizer(lambda t: t["model"]["merges"].append(["a", "\ud800"])),
        "tokenizer.json: model.merges holds what is not UTF-8",
    ),
    "token id beyond 32 bits": (
        lambda f: (config(bos_token_id=5_000_000_000)(f), (f / "tokenizer_config.json").unlink()),
        "bos_token_id must be a token id",
    ),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors: no such file"),
    "index names a file outside": (
        index(lambda i: i["weight_map"].update({"lm_head.weight": "../x.safetensors"})),
        "must be a plain name inside the folder",
    ),
    "index misplaces a tensor": (
        index(lambda i: i["weight_map"].update({"lm_head.weight": "model-00001-of-00002.safetensors"})),
        "lm_head.weight: the index places",
    ),
    "a link out of the folder": (
        lambda f: (
            shutil.move(f / "model.safetensors", f.parent / "m"),
            (f / "model.safetensors").symlink_to(f.parent / "m"),
        ),
        "link that leaves its folder",
    ),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle checkpoint"),
    "pickle in disguise": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(40)),
        "model.safetensors",
    ),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "no safetensors file in the folder"),
    "swiglu_limit": (config(swiglu_limit=5.0), "swiglu_limit is 5.*--allow-lossy"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path) -> None:
    damage, words = BAD[case]
    folder, out = copy(tmp_path / "c"), tmp_path / "out"
    damage(folder)
    out.mkdir()
    done = run("to-gguf", folder, "-o", out / "out.gguf")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == 3, done.stderr
    assert len(lines) == 1 and lines[0].startswith(f"error: {tmp_path}") and re.search(words, lines[0]), lines
    assert list(out.iterdir()) == [] and done.stdout == ""
