"""LoRA adapters merged into a checkpoint: a view whose tensors are base + scale * B A, computed when they are read.

    >>> c = with_adapters(open_checkpoint("gpt-oss-20b"), [("my-adapter", 1.0)])
    >>> c.array("layers.3.q_proj.weight")                      # merged in float32, rounded once to bf16

What adapters may hold, and where their tensors belong: adapter.py. The sums: deltas.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.adapter import Adapter
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.deltas import Deltas
from gptoss_adapters.checkpoint.dtypes import DENSE
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
    deltas: dict[str, Deltas] = {}
    tensors = dict(base.tensors)
    stored = dict(base.stored)
    words: list[str] = []
    for path, scale in adapters:
        adapter = Adapter(Path(path), base, scale, order)
        adapter.add_to(deltas)
        tensors |= adapter.replaced
        stored[adapter.file.path] = adapter.file
        words.append(adapter.summarise())
    merged = dataclasses.replace(base, tensors=tensors, stored=stored)
    added = tensors | {name: _describe_merged(tensors[name]) for name in deltas}
    return dataclasses.replace(
        base,
        tensors=added,
        stored=stored,
        deltas=deltas,
        base=merged if adapters else None,
        adapters=tuple(words),
        oddities=(*base.oddities, *words),
    )


def _describe_merged(info: TensorInfo) -> TensorInfo:
    """bf16 is what fine-tunes are saved in; a base that is stored wider stays so."""
    encoding = "f32" if info.encoding in ("f32", "f16") else "bf16"
    nbytes = math.prod(info.shape) * DENSE[encoding.upper()].itemsize
    return TensorInfo(info.name, info.shape, encoding, nbytes, info.sources[:1], parts=())
