"""Checkpoints changed at will: every tensor as raw bytes, any file layout and order."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLD = Path(__file__).parents[1] / "data" / "gguf"
MODEL = "model.safetensors"
Tensors = dict[str, tuple[str, list[int], bytes]]


def read_safetensors(path: Path) -> Tensors:
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    body = data[8 + n :]
    return {k: (v["dtype"], v["shape"], body[v["data_offsets"][0] : v["data_offsets"][1]]) for k, v in header.items()}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def copy(target: Path, source: str = "tiny-mxfp4") -> Path:
    """A writable copy of a gold checkpoint."""
    shutil.copytree(GOLD / "src" / source, target, copy_function=shutil.copyfile)
    return target


def with_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_tensors(folder: Path, change: Callable[[Tensors], object]) -> Path:
    tensors = read_safetensors(folder / MODEL)
    change(tensors)
    write_safetensors(folder / MODEL, tensors)
    return folder


def sharded(folder: Path, shard_of: Callable[[str], int]) -> Path:
    """The folder's weights spread over numbered shards, tensors of a shard in sorted order, with an index."""
    tensors = read_safetensors(folder / MODEL)
    (folder / MODEL).unlink()
    count = 1 + max(map(shard_of, tensors))
    files = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for n, file in enumerate(files):
        write_safetensors(folder / file, {k: v for k, v in sorted(tensors.items()) if shard_of(k) == n})
    index = {"metadata": {}, "weight_map": {k: files[shard_of(k)] for k in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
