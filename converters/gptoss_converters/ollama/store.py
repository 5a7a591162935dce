"""Ollama's model store on disk: blobs named by their sha256, a manifest that lists them, and a config.

    blobs/sha256-<hex>
    manifests/registry.ollama.ai/library/<name>/<tag>

With the store at OLLAMA_MODELS, `ollama run <name>` finds the model with no create step. Blobs are moved in before the
manifest names them, so an interrupted run leaves nothing that Ollama sees.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.formats.gguf import GgufFile
from gptoss_adapters.errors import BadInput, CheckFailed, OutputError
from gptoss_adapters.spec import GGUF_ARCH
from gptoss_converters.gguf.metadata import FILE_TYPES

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.ollama.image."
HOST = "registry.ollama.ai"
_PIECE = 1 << 22
Progress = Callable[[str, int, int], None]


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """Hex digest of a file's bytes."""
    state = hashlib.sha256()
    size = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            state.update(piece)
            done += len(piece)
            if progress:
                progress("hash", done, size)
    return state.hexdigest()


def write_store(
    store: Path,
    name: str,
    gguf: Path,
    parts: Mapping[str, Any],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> Path:
    """Moves `gguf` into the store (copies it across file systems) with all that `parts` says; returns the manifest's
    path.

    Raises OutputError when the store cannot be written, CheckFailed when a blob does not have the digest of its name.
    """
    if ".." in name or "/" in name:
        raise BadInput("a model's name in the store has no folders", got=name)
    blobs = store / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    config = _make_config(gguf, parts, checkpoint)
    layers = [_move_in(blobs, gguf, "model", progress)]
    layers += [_write_blob(blobs, _to_bytes(value), LAYER + kind) for kind, value in _list_texts(parts)]
    config["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _write_blob(blobs, _to_bytes(config), CONFIG),
        "layers": layers,
    }
    model, _, tag = name.partition(":")
    path = store / "manifests" / HOST / "library" / model / (tag or "latest")
    path.parent.mkdir(parents=True, exist_ok=True)
    _publish(path, _to_bytes(manifest))
    return path


def check_store(store: Path, manifest: Path) -> dict[str, Any]:
    """The manifest, after every blob it names was found with its size and digest. Raises CheckFailed."""
    try:
        found: dict[str, Any] = json.loads(manifest.read_bytes())
        named = [found["config"], *found["layers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"is no manifest: {error}", file=manifest) from None
    for layer in named:
        blob = store / "blobs" / layer["digest"].replace(":", "-")
        if not blob.is_file() or blob.stat().st_size != layer["size"]:
            raise CheckFailed("the blob is missing or has another size", file=blob, expected=layer["size"])
        if f"sha256:{hash_file(blob)}" != layer["digest"]:
            raise CheckFailed("the blob's bytes do not have the digest of its name", file=blob)
    return found


def _list_texts(parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(layer kind, content) of what a model has besides its weights; requires stands in the config."""
    order = (
        ("template", "template"),
        ("system", "system"),
        ("license", "license"),
        ("params", "parameters"),
        ("messages", "messages"),
    )
    return [(kind, parts[name]) for kind, name in order if parts.get(name)]


def _make_config(gguf: Path, parts: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    kinds = {v: k.upper() for k, v in FILE_TYPES.items()} | {FILE_TYPES["mxfp4"]: "MXFP4_MOE"}
    file = GgufFile(gguf)
    parameters = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    config = {
        "model_format": "gguf",
        "model_family": GGUF_ARCH,
        "model_families": [GGUF_ARCH],
        "model_type": format_count(parameters),
        "file_type": kinds.get(file.metadata["general.file_type"], "unknown"),
        "architecture": "amd64",
        "os": "linux",
        "requires": parts.get("requires"),
        "context_length": checkpoint.config.max_position_embeddings,
        "embedding_length": checkpoint.config.hidden_size,
    }
    return {k: v for k, v in config.items() if v is not None}


def format_count(number: int) -> str:
    """`26.44M`, `2.8B`: a number of parameters as Ollama's own create writes it."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if number >= unit:
            return f"{number / unit:.{digits if number % unit else 0}f}{letter}"
    return str(number)


def _to_bytes(value: Any) -> bytes:
    return (
        value.encode()
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    )


def _write_blob(blobs: Path, data: bytes, media: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    path = blobs / f"sha256-{digest}"
    if not path.exists():
        _publish(path, data)
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}


def _move_in(blobs: Path, file: Path, kind: str, progress: Progress | None) -> dict[str, Any]:
    size = file.stat().st_size
    digest = hash_file(file, progress)
    target = blobs / f"sha256-{digest}"
    part = target.with_name(f"{target.name}-partial")
    try:
        shutil.move(file, part)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(error.strerror or str(error), file=target) from None
    part.replace(target)
    return {"mediaType": LAYER + kind, "digest": f"sha256:{digest}", "size": size}


def _publish(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
