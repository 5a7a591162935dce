"""Odd gpt-oss checkpoints and caches, one row each: what people have on their disks, and what vLLM is to make of it
with the plugin. `same`: exactly what it does without. `ours`: better, in the plugin's model class.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from helpers import crafted, kinds
from helpers import vllm_engine as engine

TINY = engine.GOLD / "tiny"
BF16, MXFP4 = TINY / "hf-bf16", TINY / "hf-mxfp4"
REPO = "someone/odd"
INDEX = "model.safetensors.index.json"
Make = Callable[[Path], object]


@dataclass(frozen=True)
class Odd:
    """`make` changes a copy of `base` in place. `hub`: the copy becomes that revision of a repository in a cache.
    `said`: what the plugin's one line must hold, "" for no word.
    """

    name: str
    make: Make
    expected: str = "same"
    said: str = ""
    base: Path = BF16
    options: dict[str, Any] = field(default_factory=dict)
    hub: str = ""
    blank: bool = False  # vLLM leaves parameters as the memory was, with or without us

    def build(self, top: Path) -> tuple[Path | str, dict[str, Any]]:
        """What `vllm serve` is given, and its options."""
        folder = top / "model"
        shutil.copytree(self.base, folder, copy_function=shutil.copyfile)
        self.make(folder)
        if not self.hub:
            return folder, self.options
        cache(top / "cache", self.hub, folder)
        return REPO, self.options


def cache(hub: Path, revision: str, folder: Path) -> None:
    """The folder's files as a snapshot of REPO in a cache of the Hub's own layout, under a branch `revision`."""
    commit = f"{sum(revision.encode()):040x}"
    top = hub / f"models--{REPO.replace('/', '--')}"
    snapshot = top / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (top / "refs").mkdir(exist_ok=True)
    (top / "refs" / revision).write_text(commit)
    (top / "blobs").mkdir(exist_ok=True)
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        blob = top / "blobs" / f"{commit[-8:]}-{file.name}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")


# What is changed ------------------------------------------------------------------------------------------------------


def nothing(folder: Path) -> None:
    """As it was published."""


def config(**values: Any) -> Make:
    return lambda folder: crafted.with_config(folder, lambda raw: raw.update(values))


def both(*changes: Make) -> Make:
    return lambda folder: [change(folder) for change in changes]


def tensors(**added: np.ndarray) -> Make:
    """More tensors, `__` for the dots of their names."""

    def add(found: crafted.Tensors) -> None:
        for name, array in added.items():
            dtype = {"f": "F32", "u": "U8", "i": "I32"}[array.dtype.kind]
            found[name.replace("__", ".")] = (dtype, list(array.shape), array.tobytes())

    return lambda folder: crafted.with_tensors(folder, add)


def renamed(change: Callable[[str], str], dtype: str = "", wanted: str = "self_attn.q_proj.weight") -> Make:
    """The tensors whose names end so under another name, and stated as another dtype of the same size of numbers."""

    def rename(found: crafted.Tensors) -> None:
        for name in [n for n in found if n.endswith(wanted)]:
            stated, shape, data = found.pop(name)
            if dtype:
                shape, data = [*shape[:-1], shape[-1]], data[: len(data) // 2]
            found[change(name)] = (dtype or stated, shape, data)

    return lambda folder: crafted.with_tensors(folder, rename)


def kind(name: str, **options: Any) -> Make:
    """The same weights as another kind."""

    def rewrite(folder: Path) -> None:
        made = kinds.write_kind(folder, name, folder.parent / "rewritten", **options)
        shutil.rmtree(folder)
        made.rename(folder)

    return rewrite


def shards(folder: Path) -> None:
    crafted.sharded(folder, lambda name: len(name) % 2)


def without(file: str) -> Make:
    return lambda folder: (folder / file).unlink()


def write(file: str, data: bytes) -> Make:
    return lambda folder: (folder / file).write_bytes(data)


def cut(file: str) -> Make:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-1000])


def elsewhere(folder: Path) -> None:
    """The folder holds links to files on another disk."""
    real = folder.parent / "disk"
    folder.rename(real)
    folder.mkdir()
    for file in real.iterdir():
        (folder / file.name).symlink_to(file)


def adapter(folder: Path) -> None:
    crafted.write_safetensors(
        folder / "adapter_model.safetensors",
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", [1, 64], bytes(256))},
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1}')


def untied(folder: Path) -> None:
    crafted.with_tensors(folder, lambda found: found.pop("lm_head.weight"))


def pickled(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / crafted.MODEL), folder / "pytorch_model.bin")
    (folder / crafted.MODEL).unlink()


ONE = np.ones(1, np.float32)
KV = {f"model__layers__{n}__self_attn__{w}_scale": ONE for n in range(4) for w in "kv"}
KV_SCALES = tensors(**KV)
EPS = config(rms_norm_eps=0.05)
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}


def compressed(weights: dict[str, Any], form: str) -> dict[str, Any]:
    group = {"targets": ["re:.*self_attn.*"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


ROWS = (
    Odd("plain bf16", nothing),
    Odd("plain mxfp4", nothing, base=MXFP4, options={"dtype": "bfloat16"}),
    Odd("scales of a KV cache", KV_SCALES),
    Odd("code that a config names", config(auto_map={"AutoConfig": "odd.Config"})),
    Odd("code, and another epsilon", both(EPS, config(auto_map={"AutoModel": "odd.Model"})), "ours", "rms_norm_eps"),
    Odd("scales of a KV cache, and another epsilon", both(EPS, KV_SCALES), "ours", "rms_norm_eps"),
    Odd("a value head", tensors(v_head__summary__weight=np.ones((1, 64), np.float32))),
    Odd("tables of an old RoPE", tensors(model__layers__0__self_attn__rotary_emb__inv_freq=ONE)),
    Odd("scales of activations", tensors(model__layers__0__mlp__experts__gate_up_proj__input_scale=ONE)),
    Odd("embeddings said to be tied", config(tie_word_embeddings=True)),
    Odd("embeddings that are tied", both(config(tie_word_embeddings=True), untied), blank=True),
    Odd("a head that is missing", untied, blank=True),
    Odd("linear RoPE", config(rope_scaling={"rope_type": "linear", "factor": 2.0}), said="rope_type"),
    Odd("no sliding window", config(sliding_window=None), said="sliding_window"),
    Odd("keys of another tool", config(unsloth_fixed=True, _attn_implementation="eager", torch_dtype="float32")),
    Odd("a stale MXFP4 entry", config(quantization_config={"quant_method": "mxfp4"}), "ours", "does not fit"),
    Odd("MXFP4 that no entry states", lambda f: crafted.with_config(f, lambda raw: raw.pop("quantization_config")),
        "ours", "does not fit", base=MXFP4),
    Odd("bitsandbytes", both(config(quantization_config=BNB), tensors(
        **{"model__layers__0__self_attn__q_proj__weight__absmax": ONE}))),
    Odd("GPTQ", config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False})),
    Odd("AWQ", config(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True})),
    Odd("FP8", config(quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})),
    Odd("attention in FP8", both(renamed(str, "F8_E4M3"),
        config(quantization_config=compressed(FP8, "float-quantized")))),
    Odd("attention in int4", both(renamed(lambda n: f"{n}_packed"),
        config(quantization_config=compressed(INT4, "pack-quantized")))),
    Odd("an adapter in the folder", adapter),
    Odd("an adapter beside an index", both(shards, adapter)),
    Odd("a file that was cut", cut(crafted.MODEL), said="model.safetensors"),
    Odd("a pointer of git-lfs", write(crafted.MODEL, b"version https://git-lfs.github.com/spec/v1\n"), said="header"),
    Odd("an empty file beside it", write("extra.safetensors", b""), said="extra.safetensors"),
    Odd("an index that is no JSON", both(shards, write(INDEX, b"{")), said="JSON"),
    Odd("a shard that is missing", both(shards, without("model-00002-of-00002.safetensors"))),
    Odd("a shard that is missing, no index", both(shards, without(INDEX), without("model-00002-of-00002.safetensors"))),
    Odd("pickles only", pickled),
    Odd("random weights", nothing, options={"load_format": "dummy"}, blank=True),
    Odd("no weights at all", without(crafted.MODEL)),
    Odd("one layer per expert", kind("hf-defused"), "ours", "hf-defused"),
    Odd("one layer per expert, linked", both(kind("hf-defused"), elsewhere), "ours", "hf-defused"),
    Odd("one layer per expert, and a KV scale", both(kind("hf-defused"), KV_SCALES), "ours", "hf-defused"),
    Odd("experts as [out, in]", kind("hf-bf16-out-in"), "ours", "hf-bf16-out-in"),
    Odd("a repository in the cache", nothing, hub="main"),
    Odd("half a download", both(shards, without("model-00002-of-00002.safetensors")), hub="main"),
    Odd("half a download, one layer per expert",
        both(kind("hf-defused", shards=2), without("model-00002-of-00002.safetensors")), hub="main"),
    Odd("a pinned revision", kind("hf-defused"), "ours", "hf-defused", hub="v2", options={"revision": "v2"}),
)  # fmt: skip
