"""Dense experts -> MXFP4 while they are written: the rounding rule, the scales they had before, and what it did to
them.

A checkpoint that was only dequantised gets its bytes back, block by block, when the original scales are known: from
`--scales-from`, from the base of an adapter, or from the side file that a dequantised export carries.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.files import U8, MappedFile, Source
from gptoss_adapters.checkpoint.formats.safetensors import SafetensorsFile
from gptoss_adapters.checkpoint.formats.shards import safetensors_file
from gptoss_adapters.checkpoint.storage import ALL, GATE, UP, Rows
from gptoss_adapters.checkpoint.writing.fills import ChunkFill
from gptoss_adapters.checkpoint.writing.plan import Place, Plan, Tensor, Work
from gptoss_adapters.errors import BadInput
from gptoss_adapters.mxfp4.oracle import GGML_BLOCK, HF_BLOCK
from gptoss_adapters.spec import MXFP4_BLOCK
from gptoss_converters.rows.readers import ExpertBlocks, Readers
from gptoss_converters.rows.rows import PairRows, Reader

SIDE_FILE = "original-scales.mxfp4"
"""In a dequantised folder, or after a dequantised GGUF's name: a safetensors file of canonical names -> scales
[E, out, in / 32]. Not named .safetensors, because several loaders read every such file of a folder."""


_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


class Hints(Protocol):
    """What experts' blocks were before: (blocks or None, scales) of rows begin..end of a tensor, or of its half."""

    files: dict[Path, MappedFile]

    def check(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def read(self, name: str, rows: Rows, begin: int, end: int) -> tuple[U8 | None, U8]: ...


class CheckpointHints:
    """Of an MXFP4 checkpoint. `whole`: every expert tensor must be MXFP4 there (--scales-from); else what is,
    serves.
    """

    def __init__(self, checkpoint: Checkpoint, whole: bool) -> None:
        self.checkpoint, self.whole, self.files = checkpoint, whole, checkpoint.stored
        self.readers = Readers(checkpoint)
        self._packed: dict[tuple[str, Rows], PairRows | ExpertBlocks] = {}

    def check(self, name: str, shape: tuple[int, ...]) -> bool:
        info = self.checkpoint.tensors.get(name)
        fits = info is not None and info.shape == shape and info.encoding == "mxfp4"
        if fits and info is not None:
            self._packed |= {(name, rows): self.readers.packed(name, rows) for rows in (ALL, GATE, UP)}
        elif self.whole:
            got = "nothing" if info is None else f"{info.encoding} {list(info.shape)}"
            raise BadInput(
                "--scales-from: no MXFP4 scales for this model",
                file=self.checkpoint.path,
                tensor=name,
                expected=f"mxfp4 {list(shape)}",
                got=got,
            )
        return fits

    def read(self, name: str, rows: Rows, begin: int, end: int) -> tuple[U8 | None, U8]:
        return self._packed[name, rows].read(begin, end)


class SideFile:
    """Of the side file that a dequantised export carries."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, SafetensorsFile(path, path.resolve())
        self.files: dict[Path, MappedFile] = {path: self.file}

    def check(self, name: str, shape: tuple[int, ...]) -> bool:
        source, wanted = self.file.tensors.get(name), (*shape[:-1], shape[-1] // MXFP4_BLOCK)
        if source is None or source.shape != wanted or source.dtype != "U8":
            raise BadInput(
                "does not hold the scales of this model",
                file=self.path,
                tensor=name,
                expected=f"U8 {list(wanted)}",
                got=source and list(source.shape),
                hint="remove the file if the experts were changed in shape",
            )
        return True

    def read(self, name: str, rows: Rows, begin: int, end: int) -> tuple[U8 | None, U8]:
        source = self.file.tensors[name]
        data: U8 = self.file.data[source.offset : source.offset + source.nbytes].reshape(-1, source.shape[-1])
        return None, data[rows.every][begin:end]


@dataclass
class Rounding:
    """How dense experts become MXFP4, and the statistics of those that did. `hints`: the first that has a tensor is
    asked.
    """

    rule: str = "mse"
    hints: Sequence[Hints] = ()
    stats: mxfp4.QuantStats = field(default_factory=mxfp4.QuantStats)
    quantised: list[str] = field(default_factory=list)  # canonical names, known before anything is written

    def hint_of(self, name: str, shape: tuple[int, ...]) -> Hints | None:
        return next((h for h in self.hints if h.check(name, shape)), None)

    @property
    def files(self) -> dict[Path, MappedFile]:
        return {path: file for h in self.hints for path, file in h.files.items()}

    def text(self) -> str:
        return self.stats.text() if self.stats else ""


class Quantised(ChunkFill):
    """Rows of a reader as MXFP4: blocks and scales of their own (two outputs), or GGML rows (one)."""

    def __init__(
        self,
        reader: Reader,
        name: str,
        rows: Rows,
        shape: tuple[int, ...],
        source: Source,
        rounding: Rounding,
        ggml: bool,
    ) -> None:
        groups = reader.width // MXFP4_BLOCK
        super().__init__(reader.count, groups * GGML_BLOCK if ggml else (groups * HF_BLOCK, groups))
        self.reader = reader
        self.name = name
        self.of_tensor = rows
        self.source = source
        self.rounding = rounding
        self.ggml = ggml
        self.hint = rounding.hint_of(name, shape)

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        return self._quantise(begin, end, record=False)

    def produce_again(self, begin: int, end: int) -> Sequence[U8]:
        return self._quantise(begin, end, record=True)

    def _quantise(self, begin: int, end: int, record: bool) -> Sequence[U8]:
        values = self.reader.read(begin, end)
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        before, given = self.hint.read(self.name, self.of_tensor, begin, end) if self.hint else (None, None)
        try:
            blocks, scales = mxfp4.encode(values, self.rounding.rule, scales_from=given)
        except BadInput as e:
            raise BadInput(e.what, file=self.source.file, tensor=self.source.name) from None
        if record:
            self.rounding.stats.add(
                self.name, values, blocks, scales, base=None if before is None or given is None else (before, given)
            )
        return (mxfp4.hf_to_ggml(blocks, scales),) if self.ggml else (blocks, scales)


class Regrouped(ChunkFill):
    """MXFP4 rows of any storage as blocks and scales (two outputs) or as GGML rows (one); no bit of a block changes."""

    def __init__(self, packed: PairRows | ExpertBlocks, ggml: bool) -> None:
        super().__init__(
            packed.count, packed.groups * GGML_BLOCK if ggml else (packed.groups * HF_BLOCK, packed.groups)
        )
        self.packed, self.ggml = packed, ggml

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        blocks, scales = self.packed.read(begin, end)
        return (
            (mxfp4.hf_to_ggml(blocks, scales),)
            if self.ggml
            else (np.ascontiguousarray(blocks), np.ascontiguousarray(scales))
        )


class Scales(ChunkFill):
    """The scales alone, for the side file."""

    def __init__(self, packed: PairRows | ExpertBlocks) -> None:
        super().__init__(packed.count, packed.groups)
        self.packed = packed

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        return (np.ascontiguousarray(self.packed.read(begin, end)[1]),)


def with_side_file(plan: Plan, checkpoint: Checkpoint, readers: Readers, path: Path) -> Plan:
    """The plan of a dequantised export, with the experts' scales in a side file, so that the way back gives every
    byte.
    """
    names = [n for n in expert_weights(checkpoint) if checkpoint.tensors[n].encoding == "mxfp4"]
    if not names:
        return plan
    shapes = {n: (*checkpoint.tensors[n].shape[:-1], checkpoint.tensors[n].shape[-1] // MXFP4_BLOCK) for n in names}
    side = safetensors_file(path, [Tensor(n, "U8", shapes[n], math.prod(shapes[n]), f"{n}: scales") for n in names])
    number = len(plan.files)
    works = tuple(Work(Scales(readers.packed(t.name)), (Place(number, i),)) for i, t in enumerate(side.tensors))
    return dataclasses.replace(plan, files=(*plan.files, side), works=(*plan.works, *works))


def side_file_of(path: Path) -> Path:
    """Where the side file of a folder, or of a GGUF, is; a split GGUF, known by its first file, has one."""
    return path / SIDE_FILE if path.is_dir() else path.with_name(f"{_SPLIT.sub('.gguf', path.name)}.{SIDE_FILE}")


def expert_weights(checkpoint: Checkpoint) -> list[str]:
    """The canonical names of what MXFP4 is for."""
    return [name for name in layouts.canonical(checkpoint.config) if ".experts." in name and name.endswith("weight")]
