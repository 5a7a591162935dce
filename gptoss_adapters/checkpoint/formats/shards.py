"""Plans a safetensors checkpoint: which tensors, in which files, at which offsets, and how their bytes come about.

The tensors' order, the cut into shards, the shards' names and the headers are those of the published gpt-oss-20b, to
the byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.files import U8, Stamp
from gptoss_adapters.checkpoint.formats.safetensors import INDEX, SINGLE
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.layouts import Stored
from gptoss_adapters.checkpoint.storage import BLOCKS, SCALES, SWAPPED, Shape
from gptoss_adapters.checkpoint.writing.fills import Produced
from gptoss_adapters.checkpoint.writing.plan import Fill, Place, Plan, PlannedFile, Tensor, Work
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

MAX_SHARD_BYTES = 4_800_000_000  # of tensors, cut greedily, as the published shards were
_ROWS_OF = {BLOCKS: "blocks", SCALES: "scales"}  # what `Weights.rows` calls them


class Weights(Protocol):
    """Canonical tensors as rows of bytes: a tensor of one axis is [n] rows of one value, others [prod(leading), in].

    `rows(name, what, begin, end)` gives the same bytes for the same rows on every call: `what` is "dense" (bfloat16
    values), "blocks" (in / 32 * 16 bytes per row) or "scales" (in / 32 bytes per row); experts' weights have only the
    latter two. `step` is the number of rows that are cheapest to ask for at once, or a multiple of it.
    """

    config: GptOssConfig

    def rows(self, name: str, what: str, begin: int, end: int) -> U8: ...

    def step(self, name: str, what: str) -> int: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    tensor: Tensor
    fill: Produced


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds: its tensors in order, and each fill with the names of those that it fills. `hf_config`:
    the config that the weights came with, whose other keys are kept.
    """

    kind: str
    config: GptOssConfig
    tensors: Mapping[str, Tensor]
    fills: Sequence[tuple[Fill, tuple[str, ...]]]
    hf_config: Mapping[str, Any] | None = None


def plan_checkpoint(weights: Weights, kind: str, folder: Path, companions: Mapping[str, bytes], source: str) -> Plan:
    """The plan of a checkpoint of a safetensors kind in `folder`; `companions` are other files, whole, by name.

    `source` says in words where the weights come from, and with the plan's own facts identifies the output for a
    resumed run.
    """
    entries = {name: _entry(weights, spec, kind, source) for name, spec in in_order(kind, weights.config).items()}
    tensors = {name: entry.tensor for name, entry in entries.items()}
    fills = [(entry.fill, (name,)) for name, entry in entries.items()]
    contents = Contents(kind, weights.config, tensors, fills)
    return plan_files(contents, folder, companions, options={"source": source, "kind": kind})


def plan_files(
    contents: Contents,
    folder: Path,
    companions: Mapping[str, bytes],
    *,
    max_shard_bytes: int | None = None,
    sources: Mapping[Path, Stamp] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a checkpoint whose contents are known; `companions` are other files, whole, by name."""
    tensors = contents.tensors
    shards = [list(tensors)] if contents.kind == Kind.OPENAI else _cut(tensors, max_shard_bytes or MAX_SHARD_BYTES)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05d}-of-{len(shards) - 1:05d}.safetensors" for i in range(len(shards))]
    )
    extra = dict(companions) | _config_files(contents)
    if len(shards) > 1:
        extra[INDEX] = _index(tensors, dict(zip(names, shards, strict=True)))
    files = [
        safetensors_file(folder / name, [tensors[t] for t in shard]) for name, shard in zip(names, shards, strict=True)
    ]
    places = {t.name: Place(number, place) for number, file in enumerate(files) for place, t in enumerate(file.tensors)}
    works = sorted(
        (Work(fill, tuple(places[t] for t in filled)) for fill, filled in contents.fills),
        key=lambda w: (w.places[0].file, w.places[0].tensor),
    )
    files += [PlannedFile(folder / name, data, (), (), len(data)) for name, data in sorted(extra.items())]
    return Plan(tuple(files), tuple(works), sources or {}, options or {})


def in_order(kind: str, config: GptOssConfig) -> dict[str, Stored]:
    """The stored tensors in the order of OpenAI's names, which is the one in which the published shards were filled."""
    wanted, parts = layouts.stored(kind, config), layouts.parts(kind, config)
    order: dict[str, Stored] = {}
    for _, spec in sorted(layouts.stored(Kind.OPENAI, config).items()):
        for canonical, theirs in spec.terms:
            for part in parts[canonical]:  # codes where theirs are, then scales; numbers where the codes are
                both_packed = part.storage.packed and theirs.storage.packed
                if part.storage == theirs.storage or not both_packed:
                    order[part.name] = wanted[part.name]
    return order


def _entry(weights: Weights, spec: Stored, kind: str, source: str) -> _Entry:
    what = _ROWS_OF.get(spec.storage, "dense")
    tensor = Tensor(spec.name, spec.dtype, spec.shape, spec.nbytes, source)
    if spec.storage == SWAPPED:
        shape = (spec.shape[0], spec.shape[2], spec.shape[1])
        produce = _produce_swapped(weights, spec.canonical, shape)
        return _Entry(tensor, Produced(shape[0], tensor.nbytes // shape[0], produce))
    shapes = layouts.canonical(weights.config)
    segments = [(name, row_count(shapes[name])) for name, _ in spec.terms]
    rows = sum(n for _, n in segments)
    step = min(weights.step(spec.canonical, what), rows)
    return _Entry(tensor, Produced(rows, tensor.nbytes // rows, _produce_joined(weights, segments, what), step))


def row_count(shape: Shape) -> int:
    """How many rows `Weights.rows` knows of a canonical tensor of this shape."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


def _produce_joined(weights: Weights, segments: list[tuple[str, int]], what: str) -> Callable[[int, int], U8]:
    """Rows of several canonical tensors (q, k, v) as one run."""

    def produce(begin: int, end: int) -> U8:
        out, start = [], 0
        for name, n in segments:
            lo, hi = max(begin - start, 0), min(end - start, n)
            if lo < hi:
                out.append(weights.rows(name, what, lo, hi).reshape(-1))
            start += n
        return out[0] if len(out) == 1 else np.concatenate(out)

    return produce


def _produce_swapped(weights: Weights, name: str, shape: Shape) -> Callable[[int, int], U8]:
    """Whole experts [out, in], dequantised to bfloat16 and transposed to [in, out]."""
    from gptoss_adapters import mxfp4

    _, n_out, n_in = shape

    def produce(begin: int, end: int) -> U8:
        blocks, scales = (weights.rows(name, what, begin * n_out, end * n_out) for what in ("blocks", "scales"))
        groups = n_in // MXFP4_BLOCK
        values = mxfp4.decode(
            blocks.reshape(-1, n_out, groups, MXFP4_BLOCK // 2), scales.reshape(-1, n_out, groups), ml_dtypes.bfloat16
        )
        return np.ascontiguousarray(values.swapaxes(1, 2)).view(np.uint8)

    return produce


def _cut(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Greedily, in order, at most `limit` bytes of tensors each."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > limit and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def safetensors_file(path: Path, tensors: Iterable[Tensor]) -> PlannedFile:
    """One safetensors file: wider dtypes first, then by name, as its library writes them; the header is padded to 8
    bytes.
    """
    ordered = tuple(sorted(tensors, key=lambda t: (t.dtype == "U8", t.name)))
    at, header, offsets = 0, {}, []
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        offsets.append(at)
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return PlannedFile(path, head, ordered, tuple(len(head) + o for o in offsets), len(head) + at)


def _index(tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> bytes:
    total = sum(t.nbytes for t in tensors.values())
    where = {tensor: shard for shard, names in shards.items() for tensor in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}).encode()


def _config_files(contents: Contents) -> dict[str, bytes]:
    config = contents.config
    if contents.kind == Kind.OPENAI:
        stems = {name: name.rsplit(".", 1)[1] for name in contents.tensors}
        types = {name: {"blocks": "FP4", "scales": "UE8"}.get(stem, "BF16") for name, stem in stems.items()}
        return {
            "config.json": json.dumps(spellings.to_openai(config)).encode(),
            "dtypes.json": json.dumps(types).encode(),
        }
    said = spellings.to_hf(config, mxfp4=contents.kind == Kind.HF_MXFP4, source=contents.hf_config)
    return {"config.json": (json.dumps(said, indent=2) + "\n").encode()}
