"""gpt-oss checkpoint -> GGUF: a plan (`plan_gguf`) for the streaming writer.

MXFP4 experts move as bytes: a permutation of nibbles, the scales unchanged. Sources: the GGUF specification,
llama.cpp's loader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.writing.plan import Place, Plan, PlannedFile, Seal, Tensor, Work
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_converters.export_plan import ExportPlan, refuse_differing_layers
from gptoss_converters.gguf import metadata as meta
from gptoss_converters.gguf.general import general_keys
from gptoss_converters.gguf.metadata import ARRAY, STRING, U16, Key
from gptoss_converters.gguf.tensors import Entry, Tensors
from gptoss_converters.gguf.tokenizer import find_tokenizer, no_vocabulary_keys, stored_keys, tokenizer_keys
from gptoss_converters.rows.quantised import Rounding
from gptoss_converters.rows.rows import GGML_TYPES

ALIGNMENT = 32
MAX_NAME_BYTES = 63  # ggml keeps 64, with the end mark
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class GgufOptions:
    """What `to-gguf` lets one choose; None means "as stored". Sizes in bytes."""

    dense: str | None = None
    experts: str | None = None
    tokenizer: str | None = None  # a folder or file, "none", or None for the checkpoint's own
    name: str | None = None
    split_max_size: int | None = None
    sha256: bool = False
    allow_lossy: bool = False
    chat_template: str | None = None  # instead of the checkpoint's own
    notes: tuple[tuple[str, str], ...] = ()  # more metadata keys and their texts


def plan_gguf(
    checkpoint: Checkpoint, output: Path, options: GgufOptions, rounding: Rounding | None = None
) -> ExportPlan:
    """Every output tensor and every metadata byte, from headers alone. Raises BadInput and UsageError.

    `rounding`: how dense experts become MXFP4; without it as llama.cpp's own quantiser makes them.
    """
    if options.dense == "mxfp4":
        raise UsageError(
            "--dense mxfp4: MXFP4 holds expert weights only",
            hint=f"choose one of {', '.join(sorted(GGML_TYPES.keys() - {'mxfp4'}))}",
        )
    refuse_differing_layers(checkpoint.config, checkpoint.path, "llama.cpp")
    notices = _check_lossy(checkpoint, options.allow_lossy)
    rounding = rounding or Rounding("ggml")
    tensors = Tensors(checkpoint, options.dense, options.experts, rounding)
    entries = tensors.entries()
    keys = _collect_keys(checkpoint, entries, tensors.expert_type(), options, notices)
    groups = _split([t for e in entries for t in e.tensors], options.split_max_size)
    keys += _make_hash_keys(checkpoint, len(groups)) if options.sha256 else []
    files = tuple(_plan_file(*spec) for spec in _specify_files(output, keys, groups))
    places = {t.name: Place(f, i) for f, group in enumerate(groups) for i, t in enumerate(group)}
    works = tuple(Work(e.fill, tuple(places[t.name] for t in e.tensors)) for e in entries)
    sources = {path: file.stamp for path, file in (checkpoint.stored | rounding.files).items()}
    seals = _make_seals(files[0].header, checkpoint, len(groups)) if options.sha256 else ()
    return ExportPlan(
        Plan(
            files,
            works,
            sources,
            asdict(options) | {"version": _read_version(), "rounding": rounding.rule, "adapters": checkpoint.adapters},
            seals,
        ),
        notices,
    )


@cache
def _read_version() -> str:
    try:
        return version("gptoss-adapters")
    except PackageNotFoundError:
        return "unknown"


def _check_lossy(checkpoint: Checkpoint, allow: bool) -> list[str]:
    notices = []
    for name, value, instead in meta.lossy(checkpoint.config):
        what = f"config field {name} is {value:g}: a GGUF has no key for it and llama.cpp computes with {instead:g}"
        if not allow:
            raise BadInput(
                what, file=checkpoint.config_file or checkpoint.path, hint="add --allow-lossy to write it all the same"
            )
        notices.append(what)
    if meta.rounds_yarn(checkpoint.config):
        notices.append(
            "YaRN bounds are not rounded in this model; llama.cpp always rounds them, so long contexts differ slightly"
        )
    return notices


def _collect_keys(
    checkpoint: Checkpoint, entries: Sequence[Entry], expert_type: str, options: GgufOptions, notices: list[str]
) -> list[Key]:
    config = checkpoint.config
    label = meta.size_label(((t.name, t.shape) for e in entries for t in e.tensors), config.num_experts)
    general = general_keys(checkpoint, options.name or _choose_name(checkpoint), label, notices)
    keys = meta.model_keys(config, general, expert_type)
    if options.tokenizer == "none":
        keys += no_vocabulary_keys(config)
    else:
        stored = stored_keys(checkpoint) if options.tokenizer is None else []
        keys += stored or _make_tokenizer_keys(checkpoint, options, notices)
    if options.chat_template is not None:
        keys = [key for key in keys if key.name != "tokenizer.chat_template"]
        keys.append(Key("tokenizer.chat_template", STRING, options.chat_template))
    keys += meta.provenance_keys(config, checkpoint.kind, _read_version())
    return keys + [Key(name, STRING, text) for name, text in options.notes]


def _make_tokenizer_keys(checkpoint: Checkpoint, options: GgufOptions, notices: list[str]) -> list[Key]:
    files = find_tokenizer(checkpoint, options.tokenizer)
    if files.templates.default is None:
        named = ", ".join(files.templates.named)
        notices.append(
            f"the chat templates are {named}, and none is the default: llama.cpp chooses one of its own"
            if named
            else "no chat template came with the checkpoint: the published one is written"
        )
    return tokenizer_keys(files, checkpoint)


def _choose_name(checkpoint: Checkpoint) -> str:
    """A GGUF's own, whatever its file is called; else from the folder's name."""
    stored = checkpoint.metadata.get("general.name")
    path = checkpoint.path
    return (
        stored
        if isinstance(stored, str) and stored
        else meta.title(path.stem if path.is_file() else path.resolve().name)
    )


def _make_hash_keys(checkpoint: Checkpoint, files: int) -> list[Key]:
    """Room for the hashes, which are known only when everything is written."""
    sources = [p.name for p in checkpoint.stored]
    return [
        Key("gptoss_adapters.source.files", ARRAY, sources, of=STRING),
        Key("gptoss_adapters.source.sha256", ARRAY, [_NO_HASH] * len(sources), of=STRING),
        Key(
            "gptoss_adapters.data.sha256", ARRAY, [_NO_HASH] * files, of=STRING
        ),  # of each file's tensor data, without the header
    ]


def _make_seals(header: bytes, checkpoint: Checkpoint, files: int) -> tuple[Seal, ...]:
    seals: list[Seal] = []
    for of, count in (("source", len(checkpoint.stored)), ("data", files)):
        at = header.index(meta.pack_string(f"gptoss_adapters.{of}.sha256"))
        for index in range(count):
            at = header.index(_NO_HASH.encode(), at)
            seals.append(Seal(at, of, index))
            at += len(_NO_HASH)
    return tuple(seals)


def _split(tensors: Sequence[Tensor], limit: int | None) -> list[list[Tensor]]:
    """Tensors by output file: as many as fit below the limit, at least one."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if limit and groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def _specify_files(
    output: Path, keys: list[Key], groups: Sequence[Sequence[Tensor]]
) -> list[tuple[Path, list[Key], Sequence[Tensor]]]:
    """Paths, metadata and tensors per file; of a split model the first one carries the metadata, as llama.cpp
    expects.
    """
    if len(groups) == 1:
        return [(output, keys, groups[0])]
    count = len(groups)
    total = sum(map(len, groups))
    stem = output.name.removesuffix(".gguf")
    specs = []
    for n, group in enumerate(groups):
        split = [Key("split.no", U16, n), Key("split.count", U16, count), Key("split.tensors.count", meta.I32, total)]
        specs.append(
            (output.with_name(f"{stem}-{n + 1:05d}-of-{count:05d}.gguf"), (keys if n == 0 else []) + split, group)
        )
    return specs


def _plan_file(path: Path, keys: list[Key], tensors: Sequence[Tensor]) -> PlannedFile:
    """Header and offsets of one GGUF file (version 3, little endian)."""
    infos = []
    offsets = []
    at = 0
    for t in tensors:
        name = t.name.encode()
        assert len(name) <= MAX_NAME_BYTES
        dims = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        infos.append(meta.pack_string(name) + dims + struct.pack("<IQ", GGML_TYPES[t.dtype.lower()][0], at))
        offsets.append(at)
        at += _pad(t.nbytes)
    head = (
        struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + b"".join(k.pack() for k in keys) + b"".join(infos)
    )
    header = head.ljust(_pad(len(head)), b"\0")
    return PlannedFile(path, header, tuple(tensors), tuple(len(header) + o for o in offsets), len(header) + at)


def _pad(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
