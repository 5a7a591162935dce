"""Any gpt-oss checkpoint -> OpenAI's Metal `model.bin`: a plan for the streaming writer. The format is described in
checkpoint/metal.py.

Only the rows of reserved tokens are dropped; everything else comes back bit for bit. What Metal's kernels cannot run is
refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.files import U8, Source
from gptoss_adapters.checkpoint.formats import metal
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.storage import ALL, METAL_FACTOR, METAL_SCALE_BIAS, Part
from gptoss_adapters.checkpoint.writing.fills import ChunkFill
from gptoss_adapters.checkpoint.writing.plan import Fill, Place, Plan, PlannedFile, Tensor, Work
from gptoss_adapters.errors import BadInput
from gptoss_adapters.mxfp4.oracle import HF_BLOCK
from gptoss_adapters.spec import GptOssConfig
from gptoss_converters.export_plan import ExportPlan, refuse_differing_layers
from gptoss_converters.rows.quantised import Quantised, Rounding
from gptoss_converters.rows.readers import ExpertBlocks, JoinedRows, Readers
from gptoss_converters.rows.rows import BF16, Encoded, PairRows, Reader, Values


def plan_metal(checkpoint: Checkpoint, output: Path, rounding: Rounding | None = None) -> ExportPlan:
    """Header, offsets and fills, from headers alone. Raises BadInput for what the format or its kernels cannot
    express.
    """
    refuse_differing_layers(checkpoint.config, checkpoint.path, "model.bin")
    metal.check_expressible(checkpoint.config, checkpoint.config_file or checkpoint.path)
    rounding = rounding or Rounding()
    dropped = checkpoint.config.vocab_size - metal.VOCABULARY
    config = dataclasses.replace(checkpoint.config, vocab_size=metal.VOCABULARY)
    head = metal.header(config)
    entries = metal.entries(config, len(head))
    maker = _Maker(checkpoint, config, rounding)
    made = list(maker.all())
    how = {name: words for _, names, words in made for name in names}
    tensors = tuple(Tensor(e.name, e.dtype, e.shape, e.nbytes, how[e.name]) for e in entries)
    file = PlannedFile(output, head, tensors, tuple(e.offset for e in entries), entries[-1].offset + entries[-1].nbytes)
    places = {e.name: Place(0, i) for i, e in enumerate(entries)}
    works = tuple(Work(fill, tuple(places[n] for n in names)) for fill, names, _ in made)
    sources = {path: f.stamp for path, f in (checkpoint.stored | rounding.files).items()}
    plan = Plan(
        (file,), works, sources, {"kind": Kind.METAL, "rounding": rounding.rule, "adapters": checkpoint.adapters}
    )
    notices = (
        [
            f"embedding and head: rows {metal.VOCABULARY} to {checkpoint.config.vocab_size - 1} (reserved "
            "tokens) are dropped"
        ]
        if dropped
        else []
    )
    lossy = sorted({t.encoding for t in checkpoint.tensors.values() if t.encoding in ("f16", "q8_0")})
    notices += [f"tensors that are stored as {kind} are rounded to bfloat16" for kind in lossy]
    return ExportPlan(plan, [*notices, "not run on Apple hardware: the file is checked against OpenAI's own writer"])


Made = tuple[Fill, tuple[str, ...], str]


class _Maker:
    """How each stored array comes about."""

    def __init__(self, checkpoint: Checkpoint, config: GptOssConfig, rounding: Rounding) -> None:
        self.checkpoint, self.config, self.rounding, self.readers = checkpoint, config, rounding, Readers(checkpoint)

    def all(self) -> Iterator[Made]:
        shapes = layouts.canonical(self.config)
        stored = layouts.stored(Kind.METAL, self.config)
        for spec in stored.values():
            source = self.checkpoint.tensors[spec.canonical].sources[0]
            if ".experts." not in spec.canonical:
                yield self._widen(spec, shapes[spec.canonical][0], source), (spec.name,), self._describe(spec)
        for name, parts in layouts.parts(Kind.METAL, self.config).items():
            if ".experts." in name:
                yield from self._experts(name, parts, shapes[name])

    def _describe(self, spec: layouts.Stored) -> str:
        return " + ".join(n for n, _ in spec.terms) + (": rotary pairs, scaled" if spec.storage.fused else "")

    def _widen(self, spec: layouts.Stored, rows: int, source: Source) -> Fill:
        readers = [self.readers.values(name) for name, _ in spec.terms]
        if len(readers) > 1:
            return Paired(readers, self.config, source)
        cut = rows if len(spec.shape) > 1 else readers[0].count
        return Encoded(RowRange(readers[0], 0, min(cut, readers[0].count)), "bf16", source)

    def _experts(self, name: str, parts: tuple[Part, ...], shape: tuple[int, ...]) -> Iterator[Made]:
        info, rows = self.checkpoint.tensors[name], shape[1]
        source = info.sources[0]
        if not name.endswith("weight"):
            reader = self.readers.values(name)
            for e, part in enumerate(parts):
                yield Encoded(RowRange(reader, e * rows, rows), "bf16", source), (part.name,), name
            return
        pairs = zip(parts[0::2], parts[1::2], strict=True)
        if info.encoding == "mxfp4":
            packed = self.readers.packed(name)
            for e, (blocks, scales) in enumerate(pairs):
                yield (
                    Biased(packed, e * rows, rows, source),
                    (blocks.name, scales.name),
                    f"{name}: scales + {METAL_SCALE_BIAS}",
                )
            return
        self.rounding.quantised.append(name)
        whole = Quantised(self.readers.values(name), name, ALL, info.shape, source, self.rounding, ggml=False)
        for e, (blocks, scales) in enumerate(pairs):
            yield (
                Biased(whole, e * rows, rows, source),
                (blocks.name, scales.name),
                f"{name}: {info.encoding} to mxfp4, scales + {METAL_SCALE_BIAS}",
            )


class RowRange:
    """`count` rows of a reader, from `first`."""

    def __init__(self, reader: Reader, first: int, count: int) -> None:
        self.reader, self.first, self.count, self.width = reader, first, count, reader.width

    def read(self, begin: int, end: int) -> Values:
        return self.reader.read(self.first + begin, self.first + end)


class Biased(ChunkFill):
    """One expert's blocks, and its scales plus the bias."""

    def __init__(self, packed: PairRows | ExpertBlocks | Quantised, first: int, rows: int, source: Source) -> None:
        groups = packed.widths[1] if isinstance(packed, Quantised) else packed.groups
        super().__init__(rows, (groups * HF_BLOCK, groups))
        self.packed, self.first, self.source = packed, first, source

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        return self._bias(begin, end, again=False)

    def produce_again(self, begin: int, end: int) -> Sequence[U8]:
        return self._bias(begin, end, again=True)

    def _bias(self, begin: int, end: int, again: bool) -> Sequence[U8]:
        at, stop = self.first + begin, self.first + end
        if isinstance(self.packed, Quantised):
            blocks, scales = (self.packed.produce_again if again else self.packed.produce)(at, stop)
        else:
            blocks, scales = self.packed.read(at, stop)
        if scales.size and int(scales.max()) >= metal.MAX_STORED_SCALE:
            raise BadInput(
                "an MXFP4 scale byte is too large for Metal, which adds 14",
                file=self.source.file,
                tensor=self.source.name,
                expected=f"below {metal.MAX_STORED_SCALE}",
                got=int(scales.max()),
            )
        return np.ascontiguousarray(blocks), scales + np.uint8(METAL_SCALE_BIAS)


class Paired(ChunkFill):
    """q, k and v as one array: rotary pairs of q and k side by side, times their share of 1 / sqrt(head_dim)."""

    def __init__(self, readers: list[Reader], config: GptOssConfig, source: Source) -> None:
        self.joined = JoinedRows(readers)
        super().__init__(self.joined.count, 2 * self.joined.width, step=config.head_dim)
        self.source, self.head_dim = source, config.head_dim
        self.bounds = (("q", 0, config.q_rows), ("k", config.q_rows, config.q_rows + config.kv_rows))

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        rows = np.array(self.joined.read(begin, end).astype(BF16, copy=False))
        if not np.isfinite(rows).all():
            raise BadInput("holds NaN or Inf", file=self.source.file, tensor=self.source.name)
        for which, first, last in self.bounds:
            part = slice(max(first - begin, 0), max(min(last, end) - begin, 0))
            if rows[part].size:
                factor = BF16.type(METAL_FACTOR[which])
                scaled = metal.paired(rows[part], self.head_dim) * factor
                if (scaled / factor != metal.paired(rows[part], self.head_dim)).any():
                    raise BadInput(
                        f"{which} holds values too small to be halved in bfloat16, as Metal wants them",
                        file=self.source.file,
                        tensor=self.source.name,
                    )
                rows[part] = scaled
        return (rows.view(np.uint8),)
