"""The tensors of a gpt-oss GGUF: names, types, shapes, order, and how each one's bytes come about.

Order as upstream's: MXFP4 experts of every layer (down, gate, up), then the rest by their Hugging Face name. Blocks and
scales are paired by name, wherever and in whatever order they are stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import GATE, UP, Part
from gptoss_adapters.checkpoint.writing.fills import Copied, Repacked
from gptoss_adapters.checkpoint.writing.plan import Fill, Tensor
from gptoss_adapters.spec import MXFP4_BLOCK
from gptoss_converters.rows.quantised import Quantised, Regrouped, Rounding
from gptoss_converters.rows.readers import Readers
from gptoss_converters.rows.rows import DenseRows, Encoded, GgufRows, row_bytes

_NOTES = {GATE: ", even rows", UP: ", odd rows"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Tensors that one fill makes: one, or gate and up together."""

    tensors: tuple[Tensor, ...]
    fill: Fill


class Tensors:
    """All entries of a checkpoint, with expert weights as `experts` and other matrices as `dense` (None: as they
    are stored).
    """

    def __init__(self, checkpoint: Checkpoint, dense: str | None, experts: str | None, rounding: Rounding) -> None:
        self.checkpoint, self.dense, self.experts, self.rounding = checkpoint, dense, experts, rounding
        self.parts = layouts.parts(Kind.GGUF, checkpoint.config)
        self.readers = Readers(checkpoint)

    def entries(self) -> list[Entry]:
        return [entry for name in self._order() for entry in self._entries(name)]

    def expert_type(self) -> str:
        return self._type("layers.0.experts.down.weight")

    def _order(self) -> list[str]:
        config = self.checkpoint.config
        hf = {name: _natural(parts[0].name) for name, parts in layouts.parts(Kind.HF_BF16, config).items()}
        heavy = [
            f"layers.{n}.experts.{which}.weight"
            for n in range(config.num_hidden_layers)
            for which in ("down", "gate_up")
        ]
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
        if info.is_block_pair and kind == info.encoding:
            made = tuple(self._tensor(p, info, kind, "repacked") for p in parts)
            yield Entry(made, self._repacked(info, len(parts)))
            return
        for part in parts:
            fill, how = self._fill(info, part, kind)
            yield Entry((self._tensor(part, info, kind, how),), fill)

    def _tensor(self, part: Part, info: TensorInfo, kind: str, how: str) -> Tensor:
        shape = part.shape(info.shape, self.checkpoint.config)
        nbytes = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
        note = f"{' + '.join(s.name for s in info.sources)}{_NOTES.get(part.rows, '')}: {how}"
        return Tensor(part.name, kind.upper(), shape, nbytes, note)

    def _repacked(self, info: TensorInfo, tensors: int) -> Repacked:
        blocks, scales = info.sources
        rows = math.prod(info.shape[:-1]) // tensors
        files = self.readers.file(blocks), self.readers.file(scales)
        return Repacked((files[0], blocks.offset), (files[1], scales.offset), rows, scales.shape[-1], tensors, scales)

    def _fill(self, info: TensorInfo, part: Part, kind: str) -> tuple[Fill, str]:
        """How one output tensor's bytes come about, and a word for it."""
        source, rows = info.sources[0], part.rows
        if info.encoding == kind == "mxfp4":
            if all(s.dtype == "MXFP4" for s in info.sources) and len(info.sources) == len(self.parts[info.name]):
                source = next(s for s, p in info.shares(None) if p.rows == rows)
                return Copied(self.readers.file(source), source.offset, source.nbytes, source), "copied"
            return Regrouped(self.readers.packed(info.name, rows), ggml=True), "repacked"
        reader = self.readers.values(info.name, rows)
        if kind == "mxfp4":
            self.rounding.quantised += [info.name] if info.name not in self.rounding.quantised else []
            return Quantised(
                reader, info.name, rows, info.shape, source, self.rounding, ggml=True
            ), f"{info.encoding} to mxfp4 by rule {self.rounding.rule}"
        if info.encoding == kind and isinstance(reader, DenseRows | GgufRows) and reader.stride == 1:
            at = reader.offset if isinstance(reader, DenseRows) else reader.source.offset
            return Copied(
                self.readers.file(source), at, reader.count * row_bytes(kind, reader.width), reader.source
            ), "copied"
        return Encoded(reader, kind, source), "copied" if info.encoding == kind else f"{info.encoding} to {kind}"


def _natural(name: str) -> list[str]:
    """Sorts layer 10 after layer 9."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
