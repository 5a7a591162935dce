"""Any gpt-oss checkpoint -> Hugging Face's layout, experts in MXFP4 or bf16, or OpenAI's original one: a plan for the
streaming writer.

Files, names, order and headers are those of the published checkpoints. MXFP4 stays what it is, bit for bit; dense
experts become MXFP4 by a rounding rule (see quantised.py); experts that are dequantised leave their scales in a side
file, for the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.checkpoint import Checkpoint, TensorInfo
from gptoss_adapters.checkpoint.companions import NAMED_FOLDER, TOKENIZER_FILES, find_companions
from gptoss_adapters.checkpoint.files import U8, MappedFile, Source
from gptoss_adapters.checkpoint.formats.shards import Contents, in_order, plan_files
from gptoss_adapters.checkpoint.formats.tokenizer_files import small_files, tokenizer_json, vocabulary_texts
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.layouts import Stored
from gptoss_adapters.checkpoint.storage import ALL, SCALES, SWAPPED, Blocks
from gptoss_adapters.checkpoint.writing.fills import ChunkFill, Copied, SourceFile
from gptoss_adapters.checkpoint.writing.plan import Fill, Plan, Tensor
from gptoss_adapters.errors import BadInput, OutputError, UsageError
from gptoss_adapters.spec import GPT_OSS_20B
from gptoss_converters.export_plan import ExportPlan, refuse_differing_layers
from gptoss_converters.rows.quantised import SIDE_FILE, Quantised, Regrouped, Rounding, with_side_file
from gptoss_converters.rows.readers import JoinedRows, Readers
from gptoss_converters.rows.rows import BF16, DenseRows, Encoded, Reader, bf16_loses

Made = tuple[Fill, tuple[str, ...], str]  # a fill, the stored tensors it fills, and how, in words


@dataclass(frozen=True, slots=True)
class HfOptions:
    """`kind`: the layout to write; `max_shard_bytes` of tensors per file; `tokenizer`: a folder, "none", or None
    for the checkpoint's own.
    """

    kind: str = Kind.HF_MXFP4
    max_shard_bytes: int | None = None
    tokenizer: str | None = None


def plan_hf(checkpoint: Checkpoint, folder: Path, options: HfOptions, rounding: Rounding | None = None) -> ExportPlan:
    """Every file and tensor, from headers alone; the folder is made by `writer.write`'s caller. Raises BadInput for
    what the layout cannot say.
    """
    if options.kind not in (Kind.HF_MXFP4, Kind.HF_BF16, Kind.OPENAI):
        raise UsageError("not a layout to write", got=options.kind)
    rounding = rounding or Rounding()
    if options.kind == Kind.OPENAI:
        refuse_differing_layers(checkpoint.config, checkpoint.path, "OpenAI's config.json")
    unsaid = _leaves_yarn_bounds_unsaid(checkpoint)
    if unsaid and options.kind == Kind.OPENAI:
        raise _cannot_say_rounded_bounds(checkpoint)
    maker = _Maker(checkpoint, options.kind, rounding)
    made = list(maker.all())
    tensors = {name: maker.tensor(name, how) for fill, names, how in made for name in names}
    tensors = {name: tensors[name] for name in maker.wanted}
    extra, notices = companions(checkpoint, options)
    sources = {path: file.stamp for path, file in (checkpoint.stored | rounding.files).items()}
    facts = {"kind": options.kind, "rounding": rounding.rule, "adapters": checkpoint.adapters}
    fills = [(fill, names) for fill, names, _ in made]
    contents = Contents(options.kind, checkpoint.config, tensors, fills, checkpoint.hf_config)
    plan = plan_files(
        contents,
        folder,
        extra,
        max_shard_bytes=options.max_shard_bytes,
        sources=sources,
        options=facts,
    )
    if options.kind == Kind.HF_BF16:
        plan = with_side_file(plan, checkpoint, maker.readers, folder / SIDE_FILE)
    if unsaid:
        notices.append(
            "the file does not say whether YaRN bounds are rounded: written as rounded, as llama.cpp computes; "
            "published models are not (--exact-yarn)"
        )
    return ExportPlan(plan, notices + maker.notices())


def _cannot_say_rounded_bounds(checkpoint: Checkpoint) -> BadInput:
    return BadInput(
        "config field yarn_truncate cannot be expressed in OpenAI's config.json",
        file=checkpoint.path,
        expected=False,
        got=True,
        hint=(
            "a GGUF does not say it: add --exact-yarn if the model's YaRN bounds are not rounded, as in every "
            "published one"
        ),
    )


def _leaves_yarn_bounds_unsaid(checkpoint: Checkpoint) -> bool:
    """A GGUF has no key for whether YaRN's bounds are rounded, unless we wrote ours."""
    if not checkpoint.kind.gguf_like or not checkpoint.config.uses_yarn:
        return False
    return checkpoint.config.yarn_truncate and "gptoss_adapters.yarn_truncate" not in checkpoint.metadata


class _Maker:
    """How each stored tensor of the target comes about."""

    def __init__(self, checkpoint: Checkpoint, kind: str, rounding: Rounding) -> None:
        self.checkpoint, self.kind, self.rounding, self.readers = checkpoint, kind, rounding, Readers(checkpoint)
        self.wanted = in_order(kind, checkpoint.config)
        self.scales = {spec.canonical: name for name, spec in self.wanted.items() if spec.storage == SCALES}
        self.rounded: dict[str, int] = {}  # encoding -> tensors that bf16 may not hold exactly

    def tensor(self, name: str, how: str) -> Tensor:
        spec = self.wanted[name]
        named = " + ".join(dict.fromkeys(canonical for canonical, _ in spec.terms))
        return Tensor(name, spec.dtype, spec.shape, spec.nbytes, f"{named}: {how}")

    def all(self) -> Iterator[Made]:
        for name, spec in self.wanted.items():
            info = self.checkpoint.tensors[spec.canonical]
            if isinstance(spec.storage, Blocks):
                yield from self._pack(name, self.scales[spec.canonical], info)
            elif spec.storage == SWAPPED:
                yield self._swap(name, info)
            elif not spec.storage.packed:
                yield self._widen(name, spec)

    def _pack(self, blocks: str, scales: str, info: TensorInfo) -> Iterator[Made]:
        if info.encoding != "mxfp4":
            self.rounding.quantised.append(info.name)
            reader = self.readers.values(info.name)
            fill = Quantised(reader, info.name, ALL, info.shape, info.sources[0], self.rounding, ggml=False)
            yield fill, (blocks, scales), f"{info.encoding} to mxfp4 by rule {self.rounding.rule}"
        elif info.is_block_pair:
            for name, source in zip((blocks, scales), info.sources, strict=True):
                yield self._copy(source, source.offset, source.nbytes, is_scale=name == scales), (name,), "copied"
        else:
            yield Regrouped(self.readers.packed(info.name), ggml=False), (blocks, scales), "repacked"

    def _swap(self, name: str, info: TensorInfo) -> Made:
        as_it_is = [p.storage for p in info.parts] == [SWAPPED]
        if as_it_is and info.encoding == "bf16" and info.name not in self.checkpoint.deltas:
            return self._copy(info.sources[0], info.sources[0].offset, info.nbytes), (name,), "copied"
        self._count(info)
        how = "transposed" if info.encoding == "bf16" else f"{info.encoding} to bf16, transposed"
        return Transposed(self.readers.values(info.name), info), (name,), how

    def _widen(self, name: str, spec: Stored) -> Made:
        infos = [self.checkpoint.tensors[canonical] for canonical, _ in spec.terms]
        readers = [self.readers.values(i.name) for i in infos]
        first = readers[0]
        for info in infos:
            self._count(info)
        if len(readers) == 1 and infos[0].encoding == "bf16" and isinstance(first, DenseRows):
            return self._copy(infos[0].sources[0], first.offset, first.count * first.width * 2), (name,), "copied"
        reader: Reader = first if len(readers) == 1 else JoinedRows(readers)
        return (
            Encoded(reader, "bf16", infos[0].sources[0]),
            (name,),
            "copied" if infos[0].encoding == "bf16" else f"{infos[0].encoding} to bf16",
        )

    def _copy(self, source: Source, offset: int, nbytes: int, is_scale: bool = False) -> Fill:
        return (
            CopiedScales(self.readers.file(source), offset, nbytes, source)
            if is_scale
            else Copied(self.readers.file(source), offset, nbytes, source)
        )

    def _count(self, info: TensorInfo) -> None:
        if info.encoding in ("f16", "q8_0"):
            self.rounded[info.encoding] = self.rounded.get(info.encoding, 0) + 1

    def notices(self) -> list[str]:
        return [f"{n} tensors that are stored as {kind} are rounded to bfloat16" for kind, n in self.rounded.items()]


class CopiedScales(ChunkFill):
    """Scale bytes moved as they are; 255 is refused."""

    def __init__(self, file: SourceFile, offset: int, nbytes: int, source: Source) -> None:
        super().__init__(nbytes, 1)
        self.file, self.offset, self.source = file, offset, source

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        data = self.file.read(self.offset + begin, end - begin)
        if (data == 255).any():
            raise BadInput("holds MXFP4 scale bytes of 255 (NaN)", file=self.source.file, tensor=self.source.name)
        return (data,)


class Transposed(ChunkFill):
    """Whole experts [out, in] as bf16 [in, out]. `lossy` as in Encoded."""

    def __init__(self, reader: Reader, info: TensorInfo) -> None:
        experts, self.out, width = info.shape
        super().__init__(experts, 2 * self.out * width)
        self.reader, self.source, self.lossy = reader, info.sources[0], False

    def produce(self, begin: int, end: int) -> Sequence[U8]:
        values = self.reader.read(begin * self.out, end * self.out)
        if not np.isfinite(values).all():
            raise BadInput("holds NaN or Inf", file=self.source.file, tensor=self.source.name)
        self.lossy = self.lossy or bf16_loses(values, self.source)
        matrices = values.astype(BF16, copy=False).reshape(end - begin, self.out, -1)
        return (np.ascontiguousarray(matrices.swapaxes(1, 2)).view(np.uint8),)


def companions(checkpoint: Checkpoint, options: HfOptions) -> tuple[dict[str, bytes], list[str]]:
    """Tokenizer files, generation config and licence, as they are; of a GGUF with the published vocabulary the
    published ones, with its own chat template.
    """
    out: dict[str, bytes] = {}
    if checkpoint.license_text is not None:
        out["LICENSE"] = checkpoint.license_text.encode()
    if options.kind == Kind.OPENAI or options.tokenizer == "none":
        return out, []
    files = _find_tokenizer_files(checkpoint, options.tokenizer)
    out |= {name: MappedFile(path, path.resolve()).data.tobytes() for name, path in files.items()}
    generation = checkpoint.path / "generation_config.json" if checkpoint.path.is_dir() else None
    if generation is not None and checkpoint.generation_config is not None:
        out["generation_config.json"] = MappedFile(generation, generation.resolve()).data.tobytes()
    if files:
        return out, _name_left_templates(checkpoint)
    if not _has_published_vocabulary(checkpoint):
        return out, ["no tokenizer came with the checkpoint: none is written (--tokenizer DIR adds one)"]
    out |= {name: text.encode() for name, text in {"tokenizer.json": tokenizer_json(), **small_files()}.items()}
    if checkpoint.chat_template is not None:
        out["chat_template.jinja"] = checkpoint.chat_template.encode()
    in_file = "tokenizer.ggml.tokens" in checkpoint.metadata
    why = ": the vocabulary in the file is theirs" if in_file else ""
    return out, [f"the tokenizer files are the published ones{why}", *_name_left_templates(checkpoint)]


def _find_tokenizer_files(checkpoint: Checkpoint, where: str | None) -> dict[str, Path]:
    """The checkpoint's own, or those of the folder `where`."""
    if where is None:
        return dict(checkpoint.tokenizer_files)
    folder = Path(where)
    there = find_companions(folder.resolve()) if folder.is_dir() else {}
    if "tokenizer.json" not in there:
        raise BadInput(
            "no such tokenizer",
            file=folder / "tokenizer.json",
            hint="--tokenizer names a folder with tokenizer.json, or none",
        )
    return {name: there[name] for name in TOKENIZER_FILES if name in there}


def _has_published_vocabulary(checkpoint: Checkpoint) -> bool:
    """By its size, and by its ordinary tokens where the file holds them."""
    if checkpoint.config.vocab_size != GPT_OSS_20B.vocab_size:
        return False
    stored, ordinary = checkpoint.metadata.get("tokenizer.ggml.tokens"), GPT_OSS_20B.bos_token_id
    return stored is None or list(stored)[:ordinary] == vocabulary_texts(GPT_OSS_20B.vocab_size)[:ordinary]


def _name_left_templates(checkpoint: Checkpoint) -> list[str]:
    """Named templates that lie in a folder or in a GGUF; those of tokenizer_config.json go with that."""
    folder = checkpoint.path / NAMED_FOLDER
    if not checkpoint.chat_templates or (not folder.is_dir() and not checkpoint.kind.gguf_like):
        return []
    names = ", ".join(checkpoint.chat_templates)
    return [f"the chat templates {names} are not written: {NAMED_FOLDER}/NAME.jinja is where they belong"]


def refuse_other_weights(plan: Plan, folder: Path) -> None:
    """Weights that would stay beside the new ones might be the ones that a reader takes."""
    ours = {f.path.name for f in plan.files}
    for file in sorted(
        [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json"), *folder.glob("*.mxfp4")]
    ):
        if file.name not in ours:
            raise OutputError(
                "holds or lists other weights, which would stand beside the new ones",
                file=file,
                hint="remove it, or write elsewhere",
            )
