"""Checkpoints with one mistake in the file, as a bad converter or a wrong config makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from helpers.crafted import Tensors, with_config, with_tensors

Change = Callable[[Path], object]


def checkpoint(folder: Path, preset: str = "p1", seed: int = 0) -> Path:
    write(plan_new(preset, folder, seed=seed), sync=False)
    return folder


def _each(folder: Path, ending: str, change: Callable[[np.ndarray], Any]) -> None:
    def all_of(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(ending)]:
            dtype, shape, data = tensors[name]
            kind = np.uint8 if dtype == "U8" else ml_dtypes.bfloat16
            made = np.ascontiguousarray(change(np.frombuffer(data, kind).reshape(shape).copy()))
            assert made.dtype == kind and list(made.shape) == shape
            tensors[name] = (dtype, shape, made.tobytes())

    with_tensors(folder, all_of)


def _zero(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def _swap_rows(x: np.ndarray) -> np.ndarray:
    pairs = x.reshape(x.shape[0], -1, 2, *x.shape[2:])
    return pairs[:, :, ::-1].reshape(x.shape)


def gate_up_swapped(folder: Path) -> None:
    for ending in ("gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias"):
        _each(folder, ending, _swap_rows)


def no_sinks(folder: Path) -> None:
    _each(folder, "self_attn.sinks", lambda x: np.full_like(x, -1e4))


def one_expert_shifted(folder: Path) -> None:
    def shift(x: np.ndarray) -> np.ndarray:
        x[3] -= 1
        return x

    _each(folder, "layers.1.mlp.experts.gate_up_proj_scales", shift)


def layers_exchanged(folder: Path) -> None:
    def swap(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.1.")]:
            other = name.replace("layers.1.", "layers.2.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    with_tensors(folder, swap)


def _config(**fields: Any) -> Change:
    return lambda folder: with_config(folder, lambda config: config.update(fields))


def yarn_factor(folder: Path) -> None:
    with_config(folder, lambda config: config["rope_scaling"].update(factor=64.0))


# name -> (what breaks the files, the faults that explain it)
BROKEN: dict[str, tuple[Change, tuple[str, ...]]] = {
    "gate and up swapped": (gate_up_swapped, ("gate_up_swap",)),
    "no sinks": (no_sinks, ("sink_drop",)),
    "window too long": (_config(sliding_window=17), ("win_plus1",)),
    "YaRN factor": (yarn_factor, ("yarn_factor_file",)),
    "nibble order": (
        lambda f: [_each(f, e, lambda x: (x << 4) | (x >> 4)) for e in ("gate_up_proj_blocks", "down_proj_blocks")],
        ("nibble_swap",),
    ),
    "one expert's scales": (one_expert_shifted, ("w1_scale_off1_1expert",)),
    "router bias dropped": (lambda f: _each(f, "router.bias", _zero), ("router_bias_drop",)),
    "rms eps": (_config(rms_norm_eps=1e-6), ("eps_1e-6",)),
    "k bias dropped": (lambda f: _each(f, "k_proj.bias", _zero), ("k_bias_drop",)),
    "o bias dropped": (lambda f: _each(f, "o_proj.bias", _zero), ("o_bias_drop",)),
    "layers exchanged": (layers_exchanged, ("layers_exchanged",)),
    "scales off by one": (
        lambda f: [_each(f, e, lambda x: x - 1) for e in ("gate_up_proj_scales", "down_proj_scales")],
        ("scale_off1",),
    ),
}
