"""Models of Ollama: the blobs of its library, which have an architecture of their own, and names in its store.

A blob (`gptoss`, Ollama 0.11 to 0.29) is a GGUF with other metadata keys and tensor names than llama.cpp's `gpt-oss`:
fused or split query, key and value, fused (interleaved) or split gate and up, and in the oldest a tensor type for MXFP4
that only Ollama knew. A store keeps `blobs/sha256-HEX` and, per model, `manifests/HOST/NAMESPACE/NAME/TAG`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_adapters.checkpoint.files import Source, locate, read_json
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import BOS_TOKEN_ID, EOS_TOKEN_IDS, GGUF_ARCH, PAD_TOKEN_ID

PREFIX = "ollama:"
BLOB_ARCH = "gptoss"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DEFAULT_HOST, _DEFAULT_NAMESPACE, _DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_NAME = re.compile(r"(?:(?:([\w.-]+(?::\d+)?)/)?([\w.-]+)/)?([\w.-]+)(?::([\w.-]+))?")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def is_blob(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF's metadata are those of Ollama's own architecture."""
    architecture = metadata.get("general.architecture")
    return isinstance(architecture, str) and architecture == BLOB_ARCH


def translated(metadata: Mapping[str, Any], sources: Mapping[str, Source]) -> dict[str, Any]:
    """The metadata as llama.cpp spells them, with what Ollama's engine knew without a key."""
    out = {_key(key): value for key, value in metadata.items()} | {"general.architecture": GGUF_ARCH}
    rows = next(
        (s.shape for name, s in sources.items() if re.fullmatch(r"blk\.0\.ffn_(gate|gate_up|down)_exps\.weight", name)),
        None,
    )
    if rows is not None and f"{GGUF_ARCH}.feed_forward_length" in out:
        out.setdefault(f"{GGUF_ARCH}.expert_feed_forward_length", out[f"{GGUF_ARCH}.feed_forward_length"])
    if out.get(f"{GGUF_ARCH}.rope.scaling.factor", 1.0) > 1.0:
        out.setdefault(f"{GGUF_ARCH}.rope.scaling.type", "yarn")
    stops = [int(t) for t in out.get("tokenizer.ggml.eos_token_ids", ())]
    if EOS_TOKEN_IDS[0] in stops:  # a list of stops says what <|return|> alone says elsewhere
        out |= {"tokenizer.ggml.eos_token_id": EOS_TOKEN_IDS[0]}
        out.setdefault("tokenizer.ggml.padding_token_id", PAD_TOKEN_ID)
        out.setdefault("tokenizer.ggml.bos_token_id", BOS_TOKEN_ID)
    return out


def _key(key: str) -> str:
    return f"{GGUF_ARCH}.{key.removeprefix(f'{BLOB_ARCH}.')}" if key.startswith(f"{BLOB_ARCH}.") else key


def store_folder() -> Path:
    """Where Ollama keeps its models: OLLAMA_MODELS, or its default."""
    return Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")


def find_in_store(name: str, store: Path | None = None) -> Path:
    """`ollama:gpt-oss:20b` -> the model file in the store, its contents checked against the hash that is its name.

    Raises BadInput when there is no such model, or its file is missing or damaged.
    """
    from gptoss_adapters.checkpoint.formats.hub import verify

    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not match:
        raise BadInput("is not a model's name in Ollama", expected=f"{PREFIX}NAME or {PREFIX}NAME:TAG", got=name)
    host, namespace, model, tag = (
        match[1] or _DEFAULT_HOST,
        match[2] or _DEFAULT_NAMESPACE,
        match[3],
        match[4] or _DEFAULT_TAG,
    )
    root = store or store_folder()
    manifest = root / "manifests" / host / namespace / model / tag
    if {".", ".."} & {host, namespace, model, tag} or not manifest.is_file():
        raise BadInput(
            "no such model in Ollama's store",
            file=root,
            expected=f"{host}/{namespace}/{model}:{tag}",
            hint="ollama pull it, or set OLLAMA_MODELS",
        )
    layers = read_json(manifest, manifest.resolve()).get("layers")
    models = (
        [x for x in layers if isinstance(x, dict) and x.get("mediaType") == _MODEL_LAYER]
        if isinstance(layers, list)
        else []
    )
    digest = _DIGEST.fullmatch(str(models[0].get("digest"))) if len(models) == 1 else None
    if not digest:
        raise BadInput(
            "the manifest must name one model file by its sha256", file=manifest, got=f"{len(models)} model layers"
        )
    blobs = (root / "blobs").resolve()
    blob = locate(blobs, f"sha256-{digest[1]}")
    verify(blob, digest[1], str(blobs / blob.name))
    return blob
