"""Seed-made checkpoints: the same bytes for the same preset, layers and seed, on any machine and thread count.

    odd-shape   hidden != intermediate, neither a power of two; five experts; head_dim 32; wide-spread scales: finds
    transposes 20b-shape   the true configs and tensor lists; `layers` cuts them; logits are finite, the text is
    nonsense 120b-shape pocket      trained (see pocket.py): answers in well-formed Harmony p1 .. p6    parity
    checkpoints (see presets.py): every part of the model shows in their logits

Every value is a table look-up of random bytes, drawn granule by granule: a granule's bytes depend on seed, tensor and
number only. Standard deviations follow the gold checkpoints, so that every path through the model carries weight in the
logits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gptoss_adapters.checkpoint import layouts
from gptoss_adapters.checkpoint.files import U8, Array
from gptoss_adapters.checkpoint.formats.shards import Weights, plan_checkpoint, row_count
from gptoss_adapters.checkpoint.formats.tokenizer_files import small_files, tokenizer_json
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic import presets
from gptoss_adapters.checkpoint.writing.plan import Plan
from gptoss_adapters.errors import OutputError, UsageError
from gptoss_adapters.spec import GPT_OSS_20B, GPT_OSS_120B, MXFP4_BLOCK, GptOssConfig

ODD_SHAPE = GptOssConfig(
    num_hidden_layers=3,
    num_experts=5,
    experts_per_token=3,
    vocab_size=1003,
    hidden_size=160,
    intermediate_size=96,
    head_dim=32,
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=12,
    bos_token_id=1000,
    pad_token_id=1001,
    eos_token_id=1002,
)
SHAPES = {"odd-shape": ODD_SHAPE, "20b-shape": GPT_OSS_20B, "120b-shape": GPT_OSS_120B, **presets.CONFIGS}
PRESETS = (*SHAPES, "pocket")
KINDS = (Kind.HF_MXFP4, Kind.HF_BF16, Kind.OPENAI)
GRANULE_BYTES = 1 << 18  # what one seeding of the generator makes; part of the format: changing it changes the bytes

# canonical name, without the layer -> (mean, standard deviation of the configs' sizes)
_SPREAD: dict[str, tuple[float, Callable[[GptOssConfig], float]]] = {
    "embedding.weight": (0, lambda c: 1.0),
    "unembedding.weight": (0, lambda c: 2 / math.sqrt(c.hidden_size)),
    "norm.weight": (1, lambda c: 0.2),
    "attn_norm.weight": (1, lambda c: 0.2),
    "mlp_norm.weight": (1, lambda c: 0.2),
    **{f"{x}_proj.weight": (0, lambda c: 1.5 / math.sqrt(c.hidden_size)) for x in "qkv"},
    **{f"{x}_proj.bias": (0, lambda c: 0.5) for x in "qkv"},
    "sinks": (0, lambda c: 1.5),
    "o_proj.weight": (0, lambda c: 1 / math.sqrt(c.q_rows)),
    "o_proj.bias": (0, lambda c: 0.2),
    "router.weight": (0, lambda c: 1.5 / math.sqrt(c.hidden_size)),
    "router.bias": (0, lambda c: 0.5),
    "experts.gate_up.weight": (0, lambda c: 3 / math.sqrt(c.hidden_size)),
    "experts.gate_up.bias": (0, lambda c: 1.0),
    "experts.down.weight": (0, lambda c: 0.5 / math.sqrt(c.intermediate_size)),
    "experts.down.bias": (0, lambda c: 0.2),
}
_CODE_RMS = 2.926  # of the sixteen FP4 values, each equally likely
_SCALE_STEPS = {
    -4: 4,
    -3: 8,
    -2: 20,
    -1: 64,
    0: 96,
    1: 52,
    2: 12,
}  # exponent relative to the tensor's own: how many of 256


class SeedMade:
    """`Weights` made from a seed. preset: one of the parity checkpoints, which bring spreads of their own."""

    def __init__(self, config: GptOssConfig, seed: int, preset: str = "") -> None:
        self.config, self.seed, self.preset = config, seed, preset
        self.spread = presets.SPREADS.get(preset, _SPREAD)
        self.shapes = layouts.canonical(config)

    def _row_bytes(self, name: str, what: str) -> int:
        shape = self.shapes[name]
        width = 1 if len(shape) == 1 else shape[-1]
        return {"dense": 2 * width, "blocks": width // 2, "scales": width // MXFP4_BLOCK}[what]

    def step(self, name: str, what: str) -> int:
        return max(GRANULE_BYTES // self._row_bytes(name, what), 1)

    def rows(self, name: str, what: str, begin: int, end: int) -> U8:
        per_row, step = self._row_bytes(name, what), self.step(name, what)
        last = row_count(self.shapes[name])
        granules = [
            self._granule(name, what, i, (min((i + 1) * step, last) - i * step) * per_row)
            for i in range(begin // step, -(-end // step))
        ]
        flat = granules[0] if len(granules) == 1 else np.concatenate(granules)
        skip = begin // step * step
        rows = flat[(begin - skip) * per_row : (end - skip) * per_row].reshape(end - begin, per_row)
        return presets.adjust(self.preset, name, what, begin, rows) if self.preset in presets.CONFIGS else rows

    def _granule(self, name: str, what: str, number: int, nbytes: int) -> U8:
        key = hashlib.blake2b(f"{self.seed}/{name}/{what}/{number}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
        words = generator.integers(0, 2**64 - 1, size=-(-nbytes // 8), dtype=np.uint64, endpoint=True)
        raw = words.astype("<u8", copy=False).view(np.uint8)[:nbytes]
        if what == "blocks":
            return raw
        mean, std = self.spread[name.split(".", 2)[2] if name.startswith("layers.") else name]
        deviation = std(self.config)
        if what == "scales":
            return np.take(_scales(deviation), raw, mode="clip")
        return np.take(_normal(mean, deviation), raw.view("<u2"), mode="clip").view(
            np.uint8
        )  # clip: twice as fast, never clips


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    """65,536 equally likely values of the standard normal distribution."""
    inverse = NormalDist().inv_cdf
    upper = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)])
    return np.concatenate((-upper[::-1], upper))


@cache
def _normal(mean: float, std: float) -> npt.NDArray[np.uint16]:
    """uint16 -> the bits of a normally distributed bfloat16."""
    return (mean + std * _quantiles()).astype(np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


@cache
def _scales(std: float) -> U8:
    """uint8 -> scale byte, around the one that gives this standard deviation."""
    base = 127 + round(math.log2(std / _CODE_RMS))
    return np.repeat(np.array([base + s for s in _SCALE_STEPS], np.uint8), list(_SCALE_STEPS.values()))


class Given:
    """`Weights` out of arrays: bfloat16, or (blocks, scales) for the experts' weights."""

    def __init__(self, config: GptOssConfig, tensors: Iterable[tuple[str, Any]]) -> None:
        self.config = config
        self.arrays: dict[tuple[str, str], Array] = {}
        for name, value in tensors:
            pair = dict(zip(("blocks", "scales"), value, strict=True)) if isinstance(value, tuple) else {"dense": value}
            for what, array in pair.items():
                rows = row_count(layouts.canonical(config)[name])
                self.arrays[name, what] = np.ascontiguousarray(array).view(np.uint8).reshape(rows, -1)

    def rows(self, name: str, what: str, begin: int, end: int) -> U8:
        return self.arrays[name, what][begin:end]

    def step(self, name: str, what: str) -> int:
        return 1


def weights(preset: str, *, layers: int | None = None, seed: int = 0) -> Weights:
    """The weights of a preset, nothing computed yet. Raises UsageError for an unknown preset or a wrong cut."""
    if preset == "pocket":
        from gptoss_adapters.checkpoint.synthetic.pocket import POCKET, pocket_tensors

        if layers is not None:
            raise UsageError("the pocket model is trained: it cannot be cut by --layers")
        return Given(POCKET, pocket_tensors(seed))
    if preset not in SHAPES:
        raise UsageError("unknown preset", expected=" | ".join(PRESETS), got=preset)
    config = SHAPES[preset]
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise UsageError("--layers is out of range", expected=f"1 to {config.num_hidden_layers}", got=layers)
        config = dataclasses.replace(config, num_hidden_layers=layers, layer_types=config.layer_types[:layers])
    return SeedMade(config, seed, preset)


def plan_new(preset: str, folder: Path, *, kind: str = Kind.HF_MXFP4, layers: int | None = None, seed: int = 0) -> Plan:
    """The plan of a new checkpoint in `folder`, which is made if it does not exist; `writer.write` carries it out.

    A preset with the real vocabulary gets its tokenizer files; the odd one has no tokenizer. Raises UsageError,
    OutputError.
    """
    if kind not in KINDS:
        raise UsageError("unknown layout", expected=" | ".join(KINDS), got=kind)
    made = weights(preset, layers=layers, seed=seed)
    companions: dict[str, bytes] = {}
    if made.config.vocab_size == GPT_OSS_20B.vocab_size:
        companions = {
            name: text.encode() for name, text in {"tokenizer.json": tokenizer_json(), **small_files()}.items()
        }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"the folder cannot be made ({e.strerror})", file=folder) from None
    source = f"{preset}, {made.config.num_hidden_layers} layers, seed {seed}"
    plan = plan_checkpoint(made, kind, folder, companions, source)
    _refuse_other_weights(plan, folder)
    return plan


def _refuse_other_weights(plan: Plan, folder: Path) -> None:
    """Weights that would stay beside the new ones might be the ones that a reader takes."""
    ours = {f.path.name for f in plan.files}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]):
        if file.name not in ours:
            raise OutputError(
                "holds or lists other weights, which would stand beside the new ones",
                file=file,
                hint="remove it, or write elsewhere",
            )
