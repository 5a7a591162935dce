"""Whether two checkpoints of any kind hold the same weights, tensor by tensor, and in what sense.

    BYTES EQUAL          one side's bytes come back from the other by undoing permutations and exact widenings
    VALUES EQUAL         every number is equal, the bytes are not (-0, another scale of a block, dequantised experts)
    ROUNDED AS DECLARED  one side, recomputed from the other by a known rounding rule, is byte-equal; the rule is named
    DIFFERENT            none of these; the worst block is shown with both decodings

Everything streams: equal bytes are compared in the mappings, all else in pieces of a few MB.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.compare_pieces import BYTES_EQUAL, VALUES_EQUAL, Piece, checks_for, cut, iterate_pieces
from gptoss_adapters.checkpoint.dtypes import DENSE, Q8_0_BYTES
from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import NotComparable
from gptoss_adapters.spec import MXFP4_BLOCK, SLIDING

ROUNDED, DIFFERENT = "ROUNDED AS DECLARED", "DIFFERENT"
VERDICTS = BYTES_EQUAL, VALUES_EQUAL, ROUNDED, DIFFERENT
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """The block of up to 32 values with the largest difference: its index, and both sides' bytes and values."""

    index: tuple[int, ...]  # of its first value in the canonical tensor
    max_abs: float
    differing: int  # values of the whole tensor that differ
    a_bytes: str
    b_bytes: str
    a_values: tuple[float, ...]
    b_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one canonical tensor."""

    name: str
    verdict: str
    a_encoding: str
    b_encoding: str
    nbytes: int  # stored bytes of both sides together
    rule: str | None = None  # of ROUNDED AS DECLARED, for example "a -> b: q8_0"
    worst: Block | None = None


@dataclass(frozen=True)
class Report:
    """All results, and the config fields that differ: `config` (they change what is computed) and `notes` (they do
    not).
    """

    a: str
    b: str
    results: list[Result]
    config: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {v: sum(r.verdict == v for r in self.results) for v in VERDICTS}

    @property
    def ok(self) -> bool:
        return not self.config and not self.counts[DIFFERENT]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts, "ok": self.ok}


def compare(
    a: Checkpoint, b: Checkpoint, *, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Compares every canonical tensor. `progress(done, total)` counts stored bytes of both sides.

    Raises NotComparable, naming the first tensor, when the two do not have the same tensors in the same shapes.
    """
    a, b, dropped = _without_dropped_rows(a, b)
    _check_comparable(a, b)
    total = sum(t.nbytes for c in (a, b) for t in c.tensors.values())
    results: list[Result] = []
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(lambda name: compare_tensor(a, b, name), a.tensors):
            results.append(result)
            if progress:
                progress(sum(r.nbytes for r in results), total)
    a.check_unchanged()
    b.check_unchanged()
    differences, notes = compare_configs(a, b)
    return Report(str(a.path), str(b.path), results, differences, dropped + notes)


def compare_tensor(a: Checkpoint, b: Checkpoint, name: str) -> Result:
    """The verdict on one canonical tensor that both have in the same shape."""
    x, y = a.tensors[name], b.tensors[name]
    verdict, rule = _judge(a, b, name)
    worst = _find_worst(a, b, name) if verdict == DIFFERENT else None
    return Result(name, verdict, x.encoding, y.encoding, x.nbytes + y.nbytes, rule, worst)


def compare_configs(a: Checkpoint, b: Checkpoint) -> tuple[list[str], list[str]]:
    """Config fields that differ, as "field: a's / b's": those that change the logits, and notes."""
    x, y = a.config.as_dict(), b.config.as_dict()
    lines = {key: f"{key}: {_show(x[key])} / {_show(y[key])}" for key in x if x[key] != y[key]}
    is_note = {key for key in lines if key.endswith("_token_id") or key == "max_position_embeddings"}
    if "sliding_window" in lines and SLIDING not in (*x["layer_types"], *y["layer_types"]):
        lines["sliding_window"] += " (no layer slides)"
        is_note.add("sliding_window")
    one_is_gguf = a.kind.gguf_like or b.kind.gguf_like
    if one_is_gguf and a.kind != b.kind and "yarn_truncate" in lines:
        lines["yarn_truncate"] += " (GGUF has no key for it: llama.cpp always rounds)"
        is_note.add("yarn_truncate")
    return [v for k, v in lines.items() if k not in is_note], [v for k, v in lines.items() if k in is_note]


def _show(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return "".join("S" if t.startswith("s") else "F" for t in value)
    return str(value)


def _without_dropped_rows(a: Checkpoint, b: Checkpoint) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """Beside a Metal model.bin, the other side without the rows of its vocabulary that the format has no place for;
    and what they are.
    """
    rows = min(a.config.vocab_size, b.config.vocab_size)
    if Kind.METAL not in (a.kind, b.kind) or a.config.vocab_size == b.config.vocab_size:
        return a, b, []
    notes, sides = [], []
    for c in (a, b):
        if c.config.vocab_size > rows:
            cut = {name: _first_rows(c.tensors[name], rows) for name in ("embedding.weight", "unembedding.weight")}
            notes = [
                f"{name}: rows {rows} to {c.config.vocab_size - 1} are in {c.path} only: Metal's format drops them"
                for name in cut
            ]
            c = replace(c, config=replace(c.config, vocab_size=rows), tensors=c.tensors | cut)
        sides.append(c)
    return sides[0], sides[1], notes


def _first_rows(info: TensorInfo, rows: int) -> TensorInfo:
    (source,) = info.sources
    nbytes = source.nbytes // source.shape[0] * rows
    cut = replace(source, shape=(rows, *source.shape[1:]), nbytes=nbytes)
    return replace(info, shape=(rows, *info.shape[1:]), nbytes=nbytes, sources=(cut,))


def _check_comparable(a: Checkpoint, b: Checkpoint) -> None:
    for one, other in ((a, b), (b, a)):
        for name, info in one.tensors.items():
            if name not in other.tensors:
                raise NotComparable(f"the tensor is in {one.path} only", file=other.path, tensor=name)
            if info.shape != other.tensors[name].shape:
                raise NotComparable(
                    "the shapes differ",
                    file=other.path,
                    tensor=name,
                    expected=list(info.shape),
                    got=list(other.tensors[name].shape),
                )


# Bytes ----------------------------------------------------------------------------------------------------------------


def _judge(a: Checkpoint, b: Checkpoint, name: str) -> tuple[str, str | None]:
    if _same_stored_bytes(a, b, name):
        return BYTES_EQUAL, None
    checks = checks_for(a.tensors[name].encoding, b.tensors[name].encoding)
    for _, x, y in iterate_pieces(a, b, name):
        checks = {label: check for label, check in checks.items() if check(x, y)}
        if not checks:
            return DIFFERENT, None
    label = next(iter(checks))
    return (label, None) if label in VERDICTS else (ROUNDED, label)


def _same_stored_bytes(a: Checkpoint, b: Checkpoint, name: str) -> bool:
    """The fast way to BYTES EQUAL, for MXFP4 against MXFP4 and for equal storage. False means only that it did not
    help.
    """
    x, y = a.tensors[name], b.tensors[name]
    if name in a.deltas or name in b.deltas:
        return False
    if x.lies_like(y) and not x.parts[0].storage.fused:
        return all(_same(a.raw(s), b.raw(t)) for s, t in zip(x.sources, y.sources, strict=True))
    for one, h, other, g in ((a, x, b, y), (b, y, a, x)):
        if h.is_block_pair and all(s.dtype == "MXFP4" for s in g.sources):
            return _same_as_ggml(one, h, other, g)
    return False


def _same(x: U8, y: U8) -> bool:
    return x.size == y.size and all(
        np.array_equal(x[i : i + _PIECE_BYTES], y[i : i + _PIECE_BYTES]) for i in range(0, x.size, _PIECE_BYTES)
    )


def _same_as_ggml(hf: Checkpoint, h: TensorInfo, gguf: Checkpoint, g: TensorInfo) -> bool:
    """HF blocks and scales against GGML rows, through the permutation, without materialising either."""
    blocks, scales = hf.mxfp4(h.name)
    return all(
        mxfp4.compare_ggml(blocks, scales, gguf.raw(source), part.rows.start, part.rows.step) < 0
        for source, part in zip(g.sources, g.parts, strict=True)
    )


# The worst block ------------------------------------------------------------------------------------------------------


def _find_worst(a: Checkpoint, b: Checkpoint, name: str) -> Block:
    best: tuple[float, tuple[int, ...], Piece, Piece, int] | None = None
    differing = 0
    for index, x, y in iterate_pieces(a, b, name):
        p, q = x.to_f32(), y.to_f32()
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.where(p == q, np.float32(0), np.nan_to_num(np.abs(p - q), nan=np.inf, posinf=np.inf))
        differing += int(np.count_nonzero(gap))
        at = int(np.argmax(gap))
        if best is None or gap.flat[at] > best[0]:
            row, column = divmod(at, gap.shape[1])
            best = (
                float(gap.flat[at]),
                (*index[:-1], index[-1] + row),
                cut(x, row, row + 1),
                cut(y, row, row + 1),
                column,
            )
    assert best is not None
    gap_max, rows, x, y, column = best
    first = column // MXFP4_BLOCK * MXFP4_BLOCK
    span = slice(first, first + MXFP4_BLOCK)
    a_values, b_values = (tuple(float(v) for v in p.to_f32()[0, span]) for p in (x, y))
    index = (*rows, first) if len(a.tensors[name].shape) > 1 else (first,)
    return Block(index, gap_max, differing, _write_hex(x, first), _write_hex(y, first), a_values, b_values)


def _write_hex(p: Piece, first: int) -> str:
    """The stored bytes of one block: MXFP4 as scale then 16 nibble pairs (HF order), others as they are."""
    block = first // MXFP4_BLOCK
    bits = p.bits()[0]
    if p.encoding == "mxfp4":
        return bytes(bits[block]).hex(" ")
    if p.encoding == "q8_0":
        return bytes(bits[block * Q8_0_BYTES : (block + 1) * Q8_0_BYTES]).hex(" ")
    return cast(str, bits[first : first + MXFP4_BLOCK].tobytes().hex(" ", DENSE[p.encoding.upper()].itemsize))
