"""What quantising to MXFP4 did to each tensor: error, changed blocks, largest codes, zeros.

>>> stats = QuantStats()
>>> stats.add("layers.0.experts.down.weight", values, blocks, scales, base=(base_blocks, base_scales))
>>> stats["layers.0.experts.down.weight"].relative_mse, stats.total.changed
"""

from __future__ import annotations

import ctypes
import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptoss_adapters.kernels.library import address, library
from gptoss_adapters.kernels.structs import EncodeStats
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.mxfp4.codec import Array, as_source, decode, to_f32
from gptoss_adapters.mxfp4.oracle import U8
from gptoss_adapters.spec import MXFP4_BLOCK

_UNIT_BITS = 1200  # sums are kept as integers, in units of 2**-_UNIT_BITS: exact, so threads may add in any order


@dataclass
class TensorStats:
    """Sums over the blocks of one tensor, or of several."""

    blocks: int = 0
    compared: int = 0  # blocks that a base was given for
    changed: int = 0  # of these, blocks whose scale or codes are not the base's
    zero_blocks: int = 0
    minus_zeros: int = 0  # codes
    # Blocks by the magnitude code (0, .5, 1, 1.5, 2, 3, 4, 6) of their largest.
    max_codes: list[int] = field(default_factory=lambda: [0] * 8)
    error: int = 0  # sums of squares, see _UNIT_BITS
    power: int = 0

    @property
    def relative_mse(self) -> float:
        """Squared error over squared values; 0 for a tensor of zeros."""
        return self.error / self.power if self.power else 0.0

    def merge(self, other: TensorStats) -> None:
        for name in ("blocks", "compared", "changed", "zero_blocks", "minus_zeros", "error", "power"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_codes = [a + b for a, b in zip(self.max_codes, other.max_codes, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "blocks": self.blocks,
            "changed": self.changed if self.compared else None,
            "relative_mse": float(f"{self.relative_mse:.6g}"),
            "max_codes": self.max_codes,
            "zero_blocks": self.zero_blocks,
            "minus_zeros": self.minus_zeros,
        }


class QuantStats:
    """Statistics by tensor name. Thread-safe, and equal for any order of the additions."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorStats] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> TensorStats:
        return self.tensors[name]

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def add(self, name: str, values: Array, blocks: U8, scales: U8, base: tuple[U8, U8] | None = None) -> None:
        """values [..., G * 32] that became blocks [..., G, 16] and scales [..., G]; `base`: what these blocks were
        before.
        """
        made = _measure(values, blocks, scales, base)
        with self._lock:
            self.tensors.setdefault(name, TensorStats()).merge(made)

    @property
    def total(self) -> TensorStats:
        whole = TensorStats()
        for one in self.tensors.values():
            whole.merge(one)
        return whole

    def as_dict(self) -> dict[str, Any]:
        return {
            "total": self.total.as_dict(),
            "tensors": {name: self.tensors[name].as_dict() for name in sorted(self.tensors)},
        }

    def text(self) -> str:
        """The whole in a few lines, and the worst tensor."""
        whole = self.total
        lines = [
            f"quantised {whole.blocks} blocks of {len(self.tensors)} tensors: relative MSE {whole.relative_mse:.3g}"
        ]
        if whole.compared:
            lines.append(
                f"  {whole.changed} of {whole.compared} blocks ({_percent(whole.changed, whole.compared)}) "
                "differ from the base's"
            )
        shares = ", ".join(
            f"{oracle.E2M1[k]:g}: {_percent(n, whole.blocks)}" for k, n in enumerate(whole.max_codes) if n
        )
        lines.append(
            f"  largest magnitude of a block: {shares}; {whole.zero_blocks} zero blocks, {whole.minus_zeros} "
            "codes of -0"
        )
        by_name = sorted(self.tensors.items())  # of equals the first by name, not by thread
        name, worst = max(by_name, key=lambda item: item[1].relative_mse)
        return "\n".join([*lines, f"  worst tensor: {name}, relative MSE {worst.relative_mse:.3g}"])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _measure(values: Array, blocks: U8, scales: U8, base: tuple[U8, U8] | None) -> TensorStats:
    source, x = as_source(values)
    shapes = blocks.shape[:-1], *((b.shape[: scales.ndim] for b in base) if base else ())
    if x.size != scales.size * MXFP4_BLOCK or any(shape != scales.shape for shape in shapes):
        raise ValueError(
            f"values {x.shape} do not go with scales {scales.shape} and blocks {', '.join(map(str, shapes))}"
        )
    native = library()
    if not native:
        return _measure_by_numpy(x, blocks, scales, base)
    arrays = [np.ascontiguousarray(a) for a in (blocks, scales, *(base or ()))]
    found = EncodeStats()
    native.measure(
        address(x),
        source,
        scales.size,
        *[address(a) for a in arrays],
        *([None] * (4 - len(arrays))),
        ctypes.addressof(found),
    )
    compared = scales.size if base else 0
    return TensorStats(
        blocks=scales.size,
        compared=compared,
        changed=found.changed,
        zero_blocks=found.zero_blocks,
        minus_zeros=found.minus_zeros,
        max_codes=list(found.max_codes),
        error=_to_fixed_point(found.error),
        power=_to_fixed_point(found.power),
    )


def _measure_by_numpy(values: Array, blocks: U8, scales: U8, base: tuple[U8, U8] | None) -> TensorStats:
    x = (to_f32(values) if values.dtype == np.uint16 else values).astype(np.float64)
    error = x - decode(blocks, scales, np.float64).reshape(x.shape)
    codes = oracle.codes(blocks)
    largest = (codes & 7).max(axis=-1)
    made = TensorStats(
        blocks=scales.size,
        zero_blocks=int(np.count_nonzero(largest == 0)),
        minus_zeros=int(np.count_nonzero(codes == 8)),
        max_codes=np.bincount(largest.reshape(-1), minlength=8).tolist(),
        error=_to_fixed_point(np.sum(error * error)),
        power=_to_fixed_point(np.sum(x * x)),
    )
    if base is not None:
        differs = (base[0] != blocks).any(axis=-1) | (base[1] != scales)
        made.compared, made.changed = scales.size, int(np.count_nonzero(differs))
    return made


def _to_fixed_point(x: float) -> int:
    mantissa, exponent = math.frexp(x)
    return int(mantissa * 2**53) << (exponent - 53 + _UNIT_BITS)
