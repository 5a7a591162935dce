"""What a checkpoint is made of: sizes per part, parameters, MXFP4 histograms, and what is odd about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint.checkpoint import Checkpoint
from gptoss_adapters.checkpoint.dtypes import GGML_MXFP4_BYTES, GgmlBlocks, stored_type
from gptoss_adapters.checkpoint.files import U8
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.errors import BadInput
from gptoss_adapters.mxfp4 import oracle
from gptoss_adapters.spec import MXFP4_BLOCK, RMS_NORM_EPS, SWIGLU_ALPHA, SWIGLU_LIMIT, GptOssConfig, alternating

CODE_MAGNITUDES = tuple(float(v) for v in oracle.E2M1[:8])
CHUNK_BLOCKS = 1 << 15  # keeps a step's temporaries in cache
_NIBBLES = np.uint64(0x1111111111111111)


@dataclass(frozen=True, slots=True)
class Share:
    """One sort of tensors: how many, values, stored bytes, and their encodings."""

    tensors: int
    parameters: int
    nbytes: int
    encodings: list[str]


@dataclass
class Histograms:
    """Over all MXFP4 blocks: how often each scale byte, and each magnitude as the block's largest, occurs."""

    scales: dict[int, int]
    largest: dict[float, int]

    @property
    def blocks(self) -> int:
        return sum(self.scales.values())


@dataclass
class Inspection:
    """Everything that `gptoss-convert inspect` shows; `as_dict` is what `--json` prints."""

    path: str
    kind: str
    config: GptOssConfig
    files: dict[str, int]
    parts: dict[str, Share]
    parameters: int
    active_parameters: int
    tokenizer: list[str]
    chat_template: bool
    license: str | None  # its first line
    histograms: Histograms | None
    oddities: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect(
    c: Checkpoint, *, histograms: bool = True, threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Reads the whole of the experts for the histograms; nothing else is read. `progress(done, total)` counts bytes."""
    total, active = c.config.parameters()
    found = _count_histograms(c, threads, progress) if histograms else None
    tokenizer = sorted(c.tokenizer_files) or (["in the file"] if "tokenizer.ggml.tokens" in c.metadata else [])
    files = {p.name: int(f.data.size) for p, f in c.stored.items()}
    odd = [*c.oddities, *find_odd_config(c.config, c.kind), *(find_odd_scales(found) if found else [])]
    return Inspection(
        str(c.path),
        c.kind,
        c.config,
        files,
        sum_parts(c),
        total,
        active,
        tokenizer,
        c.chat_template is not None,
        _first_line(c.license_text),
        found,
        odd,
    )


def _first_line(text: str | None) -> str | None:
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), None)


def sum_parts(c: Checkpoint) -> dict[str, Share]:
    """The tensors by what they are for."""
    groups: dict[str, list[str]] = {}
    for name in c.tensors:
        groups.setdefault(_part(name), []).append(name)
    out = {}
    for part, names in groups.items():
        infos = [c.tensors[n] for n in names]
        out[part] = Share(
            len(infos),
            sum(prod(i.shape) for i in infos),
            sum(i.nbytes for i in infos),
            sorted({i.encoding for i in infos}),
        )
    return out


def _part(name: str) -> str:
    if "experts" in name:
        return "expert weights" if name.endswith("weight") else "expert biases"
    if name in ("embedding.weight", "unembedding.weight"):
        return name.partition(".")[0]
    return "router" if "router" in name else "norms" if "norm" in name else "attention"


def find_odd_config(config: GptOssConfig, kind: Kind) -> list[str]:
    """Config values that some engine ignores, or computes otherwise."""
    odd = []
    if config.layer_types != alternating(config.num_hidden_layers):
        odd.append("layer_types is not the alternating pattern, which several engines assume")
    for name, what in (("experts_per_layer", "number of experts"), ("windows", "window")):
        if getattr(config, name):
            odd.append(f"{name}: the {what} differs from layer to layer, which llama.cpp, Ollama and mlx-lm cannot say")
    for name, usual in (("swiglu_limit", SWIGLU_LIMIT), ("swiglu_alpha", SWIGLU_ALPHA), ("rms_norm_eps", RMS_NORM_EPS)):
        if getattr(config, name) != usual:
            odd.append(f"{name} is {getattr(config, name)}, not {usual}, which several engines hard-code")
    if not config.yarn_truncate and config.uses_yarn:
        odd.append(
            "YaRN bounds are exact (truncate: false), as in every published checkpoint: llama.cpp rounds them "
            "all the same"
        )
    elif not kind.gguf_like and config.yarn_truncate and config.uses_yarn:
        odd.append("YaRN bounds are rounded (truncate is true or absent), unlike in any published checkpoint")
    return odd


def find_odd_scales(h: Histograms) -> list[str]:
    """Scale bytes that some engine or target type cannot hold."""
    odd = []
    for what, wrong in (
        ("255: NaN in OCP, 2**128 elsewhere; refused by every exporter", lambda s: s == 255),
        ("253 or 254: larger codes overflow bfloat16 and float32", lambda s: s in (253, 254)),
        ("outside 104..140: float16 does not hold all their values", lambda s: not 104 <= s <= 140),
    ):
        if count := sum(n for s, n in h.scales.items() if wrong(s)):
            odd.append(f"{count} of {h.blocks} scale bytes are {what}")
    return odd


def _count_histograms(c: Checkpoint, threads: int, progress: Callable[[int, int], None] | None) -> Histograms | None:
    names = [n for n, t in c.tensors.items() if t.encoding == "mxfp4"]
    if not names:
        return None
    scales, largest = np.zeros(256, np.int64), np.zeros(8, np.int64)
    total, done = sum(c.tensors[n].nbytes for n in names), 0
    with ThreadPoolExecutor(threads) as pool:
        for name, (s, m) in zip(names, pool.map(lambda name: count_tensor(c, name), names), strict=True):
            scales += s
            largest += m
            done += c.tensors[name].nbytes
            if progress:
                progress(done, total)
    return Histograms(
        {i: int(n) for i, n in enumerate(scales) if n}, {CODE_MAGNITUDES[i]: int(n) for i, n in enumerate(largest)}
    )


def count_tensor(c: Checkpoint, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(256 counts of scale bytes, 8 counts of the largest code without sign) over the blocks of one MXFP4 tensor."""
    scales, largest = np.zeros(256, np.int64), np.zeros(8, np.int64)
    for blocks, exponents in _chunks(c, name):
        scales += np.bincount(exponents, minlength=256)
        largest += np.bincount(_largest(blocks), minlength=8)
    return scales, largest


def _chunks(c: Checkpoint, name: str) -> Iterator[tuple[npt.NDArray[np.uint64], U8]]:
    """Some blocks as two words each, in whatever nibble order they are stored, and their scales."""
    info = c.tensors[name]
    if info.encoding != "mxfp4":
        raise BadInput("is not stored as MXFP4", tensor=name)
    if all(isinstance(stored_type(s.dtype), GgmlBlocks) for s in info.sources):
        rows = [c.raw(s).reshape(-1, GGML_MXFP4_BYTES) for s in info.sources]
        pairs: Iterable[tuple[U8, U8]] = [(r[:, 1:], r[:, 0]) for r in rows]
    else:
        pairs = (
            (b.reshape(-1, MXFP4_BLOCK // 2), s.reshape(-1))
            for b, s in (c.mxfp4(name, e) for e in range(info.shape[0]))
        )
    for blocks, scales in pairs:
        for at in range(0, len(scales), CHUNK_BLOCKS):
            span = slice(at, at + CHUNK_BLOCKS)
            yield np.ascontiguousarray(blocks[span]).view(np.uint64), np.ascontiguousarray(scales[span])


def _largest(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """The largest 3-bit code in each row of 32 nibbles, bit by bit: among the nibbles still in the race, has any
    this bit?
    """
    racing = np.full_like(words, _NIBBLES)
    out = np.zeros(len(words), np.uint8)
    for bit in (2, 1, 0):
        has = (words >> np.uint64(bit)) & racing
        some = (has[:, 0] | has[:, 1]) != 0
        out |= some.astype(np.uint8) << bit
        racing = np.where(some[:, None], has, racing)
    return out
