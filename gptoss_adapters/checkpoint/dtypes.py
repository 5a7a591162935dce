"""The dtypes that a file's tensors may have: numbers, and GGUF's block types.

>>> stored_type("Q8_0").encoding, stored_type("Q8_0").item_bytes
('q8_0', 34)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK

GGML_MXFP4_BYTES = MXFP4_BLOCK // 2 + 1
Q8_0_BYTES = MXFP4_BLOCK + 2
DENSE = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
OLD_MXFP4 = "MXFP4_OLD"  # Ollama's tensor type 4: GGML's blocks with the nibbles in Hugging Face's order
_CHUNK = 1 << 20  # items that one step of a scan looks at: keeps its temporaries in cache


class StoredType(ABC):
    """A dtype: `encoding` as reports say it, and the bytes of an item, the smallest thing with a NaN of its own."""

    encoding: str
    item_bytes: int

    @abstractmethod
    def find_bad(self, data: U8) -> npt.NDArray[np.bool_]:
        """Whole items -> a flag each: what no engine computes alike, which is scale byte 255, NaN and Inf."""

    def check(self, data: U8, source: Source) -> None:
        """Raises BadInput for NaN or Inf, saying where."""
        step = _CHUNK * self.item_bytes
        for begin in range(0, data.size, step):
            bad = self.find_bad(data[begin : begin + step])
            if bad.any():
                values = math.prod(source.shape) // (data.size // self.item_bytes)  # that an item holds
                at = (begin // self.item_bytes + int(np.argmax(bad))) * values
                where = [int(i) for i in np.unravel_index(at, source.shape)]
                raise BadInput(f"NaN or Inf at {where}", file=source.file, tensor=source.name)


@dataclass(frozen=True)
class Numbers(StoredType):
    """Plain numbers."""

    encoding: str
    dtype: np.dtype[np.generic]

    @property
    def item_bytes(self) -> int:  # type: ignore[override]
        return self.dtype.itemsize

    def find_bad(self, data: U8) -> npt.NDArray[np.bool_]:
        return np.asarray(~np.isfinite(data.view(self.dtype)))


class Q80Blocks(StoredType):
    """GGML Q8_0: a scale in float16 and 32 signed bytes."""

    encoding = "q8_0"
    item_bytes = Q8_0_BYTES

    def find_bad(self, data: U8) -> npt.NDArray[np.bool_]:
        scales = np.ascontiguousarray(data.reshape(-1, Q8_0_BYTES)[:, :2]).view(np.float16)
        return np.asarray(~np.isfinite(scales[:, 0]))


@dataclass(frozen=True)
class GgmlBlocks(StoredType):
    """GGML MXFP4: a scale byte, then 16 nibble pairs; `old`: the pairs in Hugging Face's order."""

    old: bool

    encoding = "mxfp4"
    item_bytes = GGML_MXFP4_BYTES

    def find_bad(self, data: U8) -> npt.NDArray[np.bool_]:
        return np.asarray(data.reshape(-1, GGML_MXFP4_BYTES)[:, 0] == 255)

    def check(self, data: U8, source: Source) -> None:
        check_scales(data.reshape(-1, GGML_MXFP4_BYTES)[:, 0], source)

    def unpack(self, rows: U8, blocks: U8, scales: U8, start: int = 0, step: int = 1) -> None:
        """Rows [R, G * 17] into rows start, start + step, ... of blocks and scales, in Hugging Face's order."""
        from gptoss_adapters import mxfp4

        if not self.old:
            mxfp4.ggml_to_hf(rows, blocks, scales, row_start=start, row_step=step)
            return
        block = rows.reshape(len(rows), -1, GGML_MXFP4_BYTES)
        groups = block.shape[1]
        blocks.reshape(-1, groups, MXFP4_BLOCK // 2)[start::step] = block[..., 1:]
        scales.reshape(-1, groups)[start::step] = block[..., 0]


class Bytes(StoredType):
    """Integers, which hold codes or scales and no NaN."""

    encoding = "bytes"
    item_bytes = 1

    def find_bad(self, data: U8) -> npt.NDArray[np.bool_]:
        return np.zeros(len(data), np.bool_)


_TYPES: dict[str, StoredType] = {
    **{name: Numbers(name.lower(), dtype) for name, dtype in DENSE.items()},
    "Q8_0": Q80Blocks(),
    "MXFP4": GgmlBlocks(old=False),
    OLD_MXFP4: GgmlBlocks(old=True),
}
_BYTES = Bytes()


def stored_type(dtype: str) -> StoredType:
    """What a `Source.dtype` is."""
    return _TYPES.get(dtype, _BYTES)


def decode_q8_0(rows: U8) -> npt.NDArray[np.float32]:
    """GGML Q8_0 blocks (f16 scale, 32 int8) [..] -> flat float32 values, exact."""
    blocks = np.ascontiguousarray(rows).reshape(-1, Q8_0_BYTES)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    values *= np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return values.reshape(-1)


def check_scales(scales: U8, source: Source) -> None:
    """Raises BadInput for scale byte 255."""
    from gptoss_adapters import mxfp4

    mxfp4.check_scales(scales, source.file, source.name)
