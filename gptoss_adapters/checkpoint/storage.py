"""How a kind stores a canonical tensor: in parts, each with its rows and a storage.

A canonical tensor is [.., out, in]; gate and up are interleaved rows (even = gate). A part's `rows` say which of them
it holds, its `storage` how the array in the file lies:

    storage                stored array                                    place in the canonical tensor
    DENSE                  the same shape                                  numbers
    SWAPPED                the last two axes exchanged                     numbers
    FusedRows(q, k, v)     rows of the fused [Q | K | V] array             numbers
    PairedRows(q, k)       the same, rotary pairs side by side, scaled     numbers
    BLOCKS                 [.., in / 32, 16] nibble pairs                  codes
    PACKED                 [.., in / 2], the same bytes                    codes
    WORDS                  [.., in / 8] U32, the same bytes                codes
    SCALES                 [.., in / 32] exponents                         scales
    BIASED                 [.., in / 32] exponents + 14                    scales

Where a DENSE or fused array is of one of GGUF's block types, the file says so (see dtypes.py). A new storage is a class
here and its use in table.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptoss_adapters.checkpoint.dtypes import check_scales, stored_type
from gptoss_adapters.checkpoint.files import U8, Array, Source
from gptoss_adapters.spec import MXFP4_BLOCK, GptOssConfig

METAL_SCALE_BIAS = 14
METAL_FACTOR = {"q": 0.5, "k": 0.25, "v": 1.0}  # what model.bin has multiplied into the rows, see formats/metal.py
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a canonical tensor: every `step`-th from `start`. `word`: as notes and plans say it."""

    word: str
    start: int
    step: int

    @property
    def every(self) -> slice:
        """Of an array whose first axis are all rows."""
        return slice(self.start, None, self.step)

    @property
    def index(self) -> tuple[slice, ...]:
        """Into the canonical tensor [E, out, ..], or any tensor for ALL."""
        return (slice(None),) if self == ALL else (slice(None), self.every)

    def shape(self, shape: Shape) -> Shape:
        return shape if self == ALL else (shape[0], shape[1] // self.step, *shape[2:])


ALL, GATE, UP = Rows("", 0, 1), Rows("gate", 0, 2), Rows("up", 1, 2)


class Storage(ABC):
    """One way in which an array lies in a file."""

    dtypes: ClassVar[tuple[str, ...]] = ()  # that it may have; (): those that the kind allows for numbers
    packed: ClassVar[bool] = False  # holds codes or scales of MXFP4
    fused: ClassVar[bool] = False  # shares its array with other canonical tensors

    @abstractmethod
    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        """The stored array's shape, for rows of this canonical shape."""

    def encoding(self, dtype: str) -> str:
        """What the canonical tensor is encoded in."""
        return "mxfp4" if self.packed else stored_type(dtype).encoding

    def check(self, data: U8, source: Source) -> None:
        """Raises BadInput for stored bytes that no engine computes alike."""
        stored_type(source.dtype).check(data, source)


# Numbers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dense(Storage):
    """Numbers in canonical shape."""

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return shape

    def array(self, stored: Array, config: GptOssConfig) -> Array:
        """The stored array, or one expert's [1, ..], in canonical orientation: a view, unless a subclass says else."""
        return stored


@dataclass(frozen=True, slots=True)
class SwappedAxes(Dense):
    """[.., in, out]."""

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2])

    def array(self, stored: Array, config: GptOssConfig) -> Array:
        return stored.swapaxes(-1, -2)


@dataclass(frozen=True, slots=True)
class FusedRows(Dense):
    """The rows of q, k or v in the fused array [Q | K | V, ..]."""

    which: str

    fused = True

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (config.q_rows + 2 * config.kv_rows, *shape[1:])

    def array(self, stored: Array, config: GptOssConfig) -> Array:
        return stored[self.span(config)]

    def span(self, config: GptOssConfig) -> slice:
        """Where the rows lie in the fused array."""
        q, kv = config.q_rows, config.kv_rows
        return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[self.which]


@dataclass(frozen=True, slots=True)
class PairedRows(FusedRows):
    """q or k as Metal's model.bin has them: the two rows of each rotary pair side by side, and a share of
    1 / sqrt(head_dim) multiplied in.
    """

    def array(self, stored: Array, config: GptOssConfig) -> Array:
        """A copy, pairs apart and the factor taken out. Exact: the factor is a power of two, and the writer refused
        what it would round.
        """
        rows = stored[self.span(config)]
        heads = rows.reshape(-1, config.head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        restored: Array = heads * rows.dtype.type(1 / METAL_FACTOR[self.which])
        return restored


# MXFP4 ----------------------------------------------------------------------------------------------------------------


class Codes(Storage):
    """Nibble pairs in Hugging Face's order; subclasses differ in what the stored array counts."""

    packed = True

    def blocks(self, data: U8, source: Source) -> U8:
        """The bytes of a source -> [.., in / 32, 16]."""
        lead = source.shape[:-1]
        return data.reshape(*lead, -1, MXFP4_BLOCK // 2)

    def check(self, data: U8, source: Source) -> None:
        """Every code is a number."""


@dataclass(frozen=True, slots=True)
class Blocks(Codes):
    """[.., in / 32, 16] nibble pairs."""

    dtypes = ("U8",)

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (*shape[:-1], shape[-1] // MXFP4_BLOCK, MXFP4_BLOCK // 2)

    def blocks(self, data: U8, source: Source) -> U8:
        return data.reshape(source.shape)


@dataclass(frozen=True, slots=True)
class PackedBytes(Codes):
    """[.., in / 2] nibble pairs."""

    dtypes = ("U8",)

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (*shape[:-1], shape[-1] // 2)


@dataclass(frozen=True, slots=True)
class PackedWords(Codes):
    """[.., in / 8] words of eight codes, as MLX has them."""

    dtypes = ("U32",)

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (*shape[:-1], shape[-1] // 8)


@dataclass(frozen=True, slots=True)
class Scales(Storage):
    """[.., in / 32] exponents, which a file may call floats of eight exponent bits."""

    dtypes: ClassVar[tuple[str, ...]] = ("U8", "F8_E8M0")
    packed = True

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        return (*shape[:-1], shape[-1] // MXFP4_BLOCK)

    def scales(self, data: U8, source: Source) -> U8:
        """The bytes of a source -> [.., in / 32] as MXFP4 means them."""
        return data.reshape(source.shape)

    def check(self, data: U8, source: Source) -> None:
        check_scales(self.scales(data, source), source)


@dataclass(frozen=True, slots=True)
class BiasedScales(Scales):
    """Scales plus 14, as Metal's kernels want them."""

    def scales(self, data: U8, source: Source) -> U8:
        return data.reshape(source.shape) - np.uint8(METAL_SCALE_BIAS)


DENSE, SWAPPED = Dense(), SwappedAxes()
BLOCKS, PACKED, WORDS = Blocks(), PackedBytes(), PackedWords()
SCALES, BIASED = Scales(), BiasedScales()


# Parts ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor's share in one canonical tensor; `name` holds {n} for the layer, {e} for the expert, until
    filled in.
    """

    name: str
    rows: Rows = ALL
    storage: Storage = DENSE
    expert: int | None = None  # whose part it is, stored without the first axis; None: all of them

    def shape(self, shape: Shape, config: GptOssConfig) -> Shape:
        """The stored array's shape, of a canonical tensor of this shape."""
        stored = self.storage.shape(self.rows.shape(shape), config)
        return stored if self.expert is None else stored[1:]

    def lies_like(self, other: Part) -> bool:
        """Whether the same bytes mean the same, whatever the two are called."""
        return self.rows == other.rows and self.storage == other.storage
