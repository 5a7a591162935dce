"""LoRA adapters merged into a checkpoint: a view whose tensors are base + scale * B A, computed when they are read.

    >>> c = with_adapters(open_checkpoint("gpt-oss-20b"), [("my-adapter", 1.0)])
    >>> c.array("layers.3.q_proj.weight")                      # merged in float32, rounded once to bf16

What adapters may hold, and where their tensors belong: adapters/. The sums: adapters/deltas.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.adapters.finding import Form, find_adapter
from gptoss_adapters.checkpoint.adapters.gguf_lora import put_gguf
from gptoss_adapters.checkpoint.adapters.merging import Merging
from gptoss_adapters.checkpoint.adapters.mlx import put_mlx
from gptoss_adapters.checkpoint.adapters.peft import put_peft
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.companions import TOKENIZER_FILES, read_text
from gptoss_adapters.checkpoint.dtypes import DENSE
from gptoss_adapters.checkpoint.files import locate
from gptoss_adapters.errors import UsageError


def parse_adapter(text: str) -> tuple[str, float]:
    """`ADAPTER[:SCALE]` of the command line. Raises UsageError for a scale that is not a finite number."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        value = float(scale)
    except ValueError:
        if "/" in scale or "\\" in scale:
            return text, 1.0
        raise UsageError(
            "--lora takes ADAPTER or ADAPTER:SCALE", expected="a number after the colon", got=text
        ) from None
    if not np.isfinite(value):
        raise UsageError("--lora: the scale must be finite", got=text)
    return path, value


def with_adapters(
    base: Checkpoint, adapters: Sequence[tuple[str | Path, float]], order: str | None = None
) -> Checkpoint:
    """A view of `base` with the adapters added. `order` ("peft", "unsloth"): of fused expert adapters that do not say.

    Raises BadInput naming the adapter's file and tensor: another base, a rank or shape that does not fit, a tensor that
    has no place.
    """
    merging = Merging(base)
    for path, scale in adapters:
        files = find_adapter(Path(path))
        if files.form is Form.PEFT:
            put_peft(files, merging, scale, order)
        elif files.form is Form.MLX:
            put_mlx(files, merging, scale)
        else:
            put_gguf(files, merging, scale)
        merging.stored |= files.stored
        if merging.tokenizer != files.path:
            merging.words += _name_template(files.path, base)
    return _view(merging) if adapters else base


def _name_template(folder: Path, base: Checkpoint) -> list[str]:
    """A note where a trainer put a chat template beside the adapter that is not the base's: it is not taken."""
    template = folder / "chat_template.jinja"
    if not folder.is_dir() or not template.is_file():
        return []
    if read_text(template, locate(folder.resolve(), template.name)) == base.chat_template:
        return []
    return [f"{template}: not the base's template, and left out: --tokenizer {folder} takes it and the tokenizer there"]


def _view(merging: Merging) -> Checkpoint:
    """The base with its tensors replaced, and on top of it the one with the sums."""
    base = dataclasses.replace(merging.base, config=merging.config, tensors=merging.tensors, stored=merging.stored)
    if merging.config.vocab_size != merging.base.config.vocab_size:
        base = _with_tokenizer(base, merging.tokenizer)
    added = merging.tensors | {name: _describe_merged(merging.tensors[name]) for name in merging.deltas}
    return dataclasses.replace(
        base,
        tensors=added,
        deltas=merging.deltas,
        base=base,
        adapters=tuple(merging.words),
        oddities=(*base.oddities, *merging.words),
    )


def _with_tokenizer(base: Checkpoint, folder: Path | None) -> Checkpoint:
    """For another vocabulary: the tokenizer of the adapter's folder, where it has one; never a GGUF's own."""
    metadata = {key: value for key, value in base.metadata.items() if not key.startswith("tokenizer.")}
    if folder is None:
        return dataclasses.replace(base, metadata=metadata)
    root = folder.resolve()
    files = {name: locate(root, name) for name in TOKENIZER_FILES if (folder / name).exists()}
    jinja = files.get("chat_template.jinja")
    template = read_text(folder / jinja.name, jinja) if jinja else base.chat_template
    return dataclasses.replace(base, metadata=metadata, tokenizer_files=files, chat_template=template)


def _describe_merged(info: TensorInfo) -> TensorInfo:
    """bf16 is what fine-tunes are saved in; a base that is stored wider stays so."""
    encoding = "f32" if info.encoding in ("f32", "f16") else "bf16"
    nbytes = math.prod(info.shape) * DENSE[encoding.upper()].itemsize
    return TensorInfo(info.name, info.shape, encoding, nbytes, info.sources[:1], parts=())
