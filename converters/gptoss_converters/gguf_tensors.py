"""The tensors of a gpt-oss GGUF: names, types, shapes, order, and how each one's bytes come about.

Order as upstream's: MXFP4 experts of every layer (down, gate, up), then the rest by their Hugging Face name. Blocks and scales
are paired by name, wherever and in whatever order they are stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.base import DENSE, Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.files import Source
from gptoss_adapters.checkpoint.fills import Copied, Repacked, SourceFile
from gptoss_adapters.checkpoint.plan import Fill, Tensor
from gptoss_adapters.errors import BadInput
from gptoss_adapters.spec import MXFP4_BLOCK
from gptoss_converters.rows import DenseRows, Encoded, GgufRows, Mxfp4Rows, Reader, SwappedRows, row_bytes

HALVES = {"gate": (0, 2), "up": (1, 2)}  # role of a GGUF tensor -> which of the interleaved rows: start, stride


@dataclass(frozen=True, slots=True)
class Entry:
    """Tensors that one fill makes: one, or gate and up together."""

    tensors: tuple[Tensor, ...]
    fill: Fill


class Tensors:
    """All entries of a checkpoint, with expert weights as `experts` and other matrices as `dense` (None: as they are stored)."""

    def __init__(self, checkpoint: Checkpoint, dense: str | None, experts: str | None) -> None:
        self.checkpoint, self.dense, self.experts = checkpoint, dense, experts
        if checkpoint.kind not in (layouts.OPENAI, layouts.HF_MXFP4, layouts.HF_BF16, layouts.GGUF):
            raise BadInput(f"a checkpoint of kind {checkpoint.kind} cannot be exported yet", file=checkpoint.path)
        self.parts = layouts.parts(layouts.GGUF, checkpoint.config)
        self.files: dict[Path, SourceFile] = {path: SourceFile(path) for path in checkpoint.stored}

    def entries(self) -> list[Entry]:
        return [entry for name in self._order() for entry in self._entries(name)]

    def expert_type(self) -> str:
        return self._type("layers.0.experts.down.weight")

    def _order(self) -> list[str]:
        config = self.checkpoint.config
        hf = {name: _natural(parts[0].name) for name, parts in layouts.parts(layouts.HF_BF16, config).items()}
        heavy = [f"layers.{n}.experts.{which}.weight" for n in range(config.num_hidden_layers) for which in ("down", "gate_up")]
        heavy = [name for name in heavy if self.checkpoint.tensors[name].encoding == "mxfp4"]
        return heavy + sorted(hf.keys() - set(heavy), key=lambda name: hf[name])

    def _type(self, name: str) -> str:
        """The output type: F32 for what is small or a router, as upstream has it and llama.cpp wants it."""
        info = self.checkpoint.tensors[name]
        if ".experts." in name and name.endswith(".weight"):
            return self.experts or info.encoding
        if len(info.shape) < 2 or ".router." in name or not name.endswith(".weight"):
            return "f32"
        wanted = self.dense or info.encoding
        return "bf16" if wanted == "q8_0" and info.shape[-1] % MXFP4_BLOCK else wanted

    def _entries(self, name: str) -> Iterator[Entry]:
        info, kind = self.checkpoint.tensors[name], self._type(name)
        parts = self.parts[name]
        if info.roles == ("blocks", "scales") and kind == "mxfp4":
            made = tuple(self._tensor(p, info, kind, "repacked") for p in parts)
            yield Entry(made, self._repacked(info, len(parts)))
            return
        for part in parts:
            fill, how = self._fill(info, part.role, kind)
            yield Entry((self._tensor(part, info, kind, how),), fill)

    def _tensor(self, part: layouts.Part, info: TensorInfo, kind: str, how: str) -> Tensor:
        shape = layouts.stored_shape(part.role, info.shape, self.checkpoint.config)
        nbytes = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
        half = {"gate": ", even rows", "up": ", odd rows"}.get(part.role, "")
        return Tensor(part.name, kind.upper(), shape, nbytes, f"{' + '.join(s.name for s in info.sources)}{half}: {how}")

    def _repacked(self, info: TensorInfo, tensors: int) -> Repacked:
        blocks, scales = info.sources
        rows = math.prod(info.shape[:-1]) // tensors
        return Repacked((self._file(blocks), blocks.offset), (self._file(scales), scales.offset), rows, scales.shape[-1], tensors, scales)

    def _fill(self, info: TensorInfo, role: str, kind: str) -> tuple[Fill, str]:
        """How one output tensor's bytes come about, and a word for it."""
        source, reader = self._reader(info, role)
        plain = isinstance(reader, DenseRows) and reader.stride == 1
        if info.encoding == kind and (plain or isinstance(reader, GgufRows)):
            offset = reader.offset if isinstance(reader, DenseRows) else source.offset
            return Copied(self._file(source), offset, reader.count * row_bytes(kind, reader.width), source), "copied"
        return Encoded(reader, kind, source), "copied" if info.encoding == kind else f"{info.encoding} to {kind}"

    def _reader(self, info: TensorInfo, role: str) -> tuple[Source, Reader]:
        start, stride = HALVES.get(role, (0, 1))
        source = info.sources[0]
        if info.roles == ("blocks", "scales"):
            return source, Mxfp4Rows((self._file(source), self._file(info.sources[1])), (source, info.sources[1]), start, stride)
        if info.roles[0] == "gate":  # a GGUF source: halves are tensors of their own
            source, start, stride = info.sources[info.roles.index(role)], 0, 1
        if source.dtype not in DENSE:
            return source, GgufRows(self._file(source), source)
        if info.roles[0] == "swapped":
            return source, SwappedRows(self._file(source), source, start, stride)
        return source, self._dense(info, source, role, start, stride)

    def _dense(self, info: TensorInfo, source: Source, role: str, start: int, stride: int) -> DenseRows:
        """Rows as they lie in the file; an expert bias counts as rows of one value, so that gate and up are every other row."""
        fused = info.roles[0] in ("q", "k", "v")
        first = layouts.fused_rows(info.roles[0], self.checkpoint.config).start if fused else 0
        width = info.shape[-1] if info.name.endswith("weight") and len(info.shape) > 1 else 1
        values = math.prod(info.shape) // (2 if role in HALVES else 1)
        return DenseRows(self._file(source), source, width, values // width, first, start, stride)

    def _file(self, source: Source) -> SourceFile:
        return self.files[source.file]


def _natural(name: str) -> list[str]:
    """Sorts layer 10 after layer 9."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
