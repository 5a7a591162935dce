"""bf16 -> MXFP4 beside gguf-py and torch, one thread, interleaved in one process; and the error of every rule on three
distributions.

    python bench/quantize.py [--repeats 15] [--out bench/results/quantize.json]

GB/s of bfloat16 input, thread CPU time, minimum. `hot` data lies in the L2 cache, `dram` data does not; gguf-py and
torch get the hot data, gguf-py as float32 (its only input), counted as the bfloat16 bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import torch

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels.library import library
from gptoss_adapters.kernels.structs import EncodeRule
from gptoss_adapters.mxfp4.oracle import E2M1

BF16 = np.dtype(ml_dtypes.bfloat16)
WIDTH, HOT, DRAM = 2880, 64, 8192  # rows: 369 kB and 47 MB
ERROR_VALUES = 1 << 21


class Native:
    """One rule of one instruction set, into buffers that are used again; `given`: the scales that blocks may keep."""

    def __init__(self, x: np.ndarray, rule: str, given: np.ndarray | None = None) -> None:
        r = mxfp4.RULES[rule]
        self.x, self.given, self.rule = x, given, EncodeRule(r.round_up, r.ties_to_even, r.keep_minus_zero, r.search)
        self.blocks, self.scales = np.zeros((x.size // 32, 16), np.uint8), np.zeros(x.size // 32, np.uint8)

    def __call__(self) -> None:
        import ctypes

        native = library()
        assert native is not None
        given = None if self.given is None else self.given.ctypes.data
        native.encode(
            self.x.ctypes.data,
            1,
            self.scales.size,
            ctypes.addressof(self.rule),
            given,
            self.blocks.ctypes.data,
            self.scales.ctypes.data,
        )


class Measure(Native):
    """The statistics pass over what a rule made."""

    def __call__(self) -> None:
        mxfp4.QuantStats().add(
            "w", self.x, self.blocks.reshape(len(self.x), -1, 16), self.scales.reshape(len(self.x), -1)
        )


def torch_way(x: torch.Tensor) -> Callable[[], object]:
    """The fastest plain torch form: exponents by frexp, codes by bucketize."""
    edges = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])

    def run() -> object:
        v = x.float().reshape(-1, 32)
        exponent = torch.frexp(v.abs().amax(dim=1, keepdim=True))[1] - 3
        code = torch.bucketize(torch.ldexp(v.abs(), -exponent), edges).to(torch.uint8) | (v < 0).to(torch.uint8) << 3
        return code[:, 0::2] | code[:, 1::2] << 4, (exponent + 127).to(torch.uint8)

    return run


@dataclass
class Way:
    by: str
    what: str
    tool: str  # the instruction set, where it is ours
    run: Callable[[], object]
    nbytes: int
    best: float = float("inf")  # seconds of a call

    @property
    def ours(self) -> bool:
        return self.by == "ours"


def our_ways(data: dict[str, np.ndarray]) -> Iterator[Way]:
    native, hot = library(), data["hot"]
    assert native is not None
    dequantised = mxfp4.encode(hot, "mse")
    exact = mxfp4.decode(*dequantised, BF16)
    for isa in ("portable", "avx2", "avx512vnni", "amx"):
        if native.select(isa.encode()):
            for rule, (where, x) in itertools.product(mxfp4.RULES, data.items()):
                yield Way("ours", f"{rule}, {where}", isa, Native(x, rule), x.nbytes)
            kept = Native(exact, "mse", dequantised[1].reshape(-1))
            yield Way("ours", "mse, scales kept, hot", isa, kept, hot.nbytes)
            yield Way("ours", "statistics, hot", isa, Measure(hot, "mse"), hot.nbytes)


def their_ways(hot: np.ndarray) -> Iterator[Way]:
    wide, tensor = hot.astype(np.float32), torch.from_numpy(hot.view(np.int16)).view(torch.bfloat16)
    kind = gguf.GGMLQuantizationType.MXFP4
    yield Way("gguf-py", "ggml, hot", "numpy", lambda: gguf.quants.quantize(wide, kind), hot.nbytes)
    yield Way("torch", "floor, bucketize, hot", "torch", torch_way(tensor), hot.nbytes)


def speeds(repeats: int) -> list[dict[str, Any]]:
    native = library()
    assert native is not None
    rng = np.random.default_rng(0)
    data = {name: rng.standard_normal((rows, WIDTH)).astype(BF16) for name, rows in (("hot", HOT), ("dram", DRAM))}
    ways = [*our_ways(data), *their_ways(data["hot"])]
    for _ in range(repeats):
        for way in ways:
            if way.ours:
                native.select(way.tool.encode())
            calls = max((4 << 20) // way.nbytes, 1) if way.ours else 1
            begin = time.thread_time()
            for _ in range(calls):
                way.run()
            way.best = min(way.best, (time.thread_time() - begin) / calls)
    return [
        {"by": way.by, "what": way.what, "with": way.tool, "gb_per_s": round(way.nbytes / way.best / 1e9, 4)}
        for way in ways
    ]


def errors() -> dict[str, dict[str, float]]:
    """Relative mean squared error, by distribution and rule."""
    rng = np.random.default_rng(1)
    out: dict[str, dict[str, float]] = {}
    for name, x in (
        ("gaussian", rng.standard_normal(ERROR_VALUES)),
        ("laplace", rng.laplace(size=ERROR_VALUES)),
        ("student-t(4)", rng.standard_t(4, ERROR_VALUES)),
    ):
        values = x.astype(np.float32).astype(BF16).reshape(-1, 32)
        exact, out[name] = values.astype(np.float64), {}
        for rule in mxfp4.RULES:
            made = mxfp4.decode(*mxfp4.encode(values, rule), np.float64)
            out[name][rule] = round(float(((made - exact) ** 2).sum() / (exact**2).sum()), 6)
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantize.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "threads": 1,
        "cpu": platform.machine(),
        "versions": {p: version(p) for p in ("gguf", "torch", "numpy")},
        "values": [float(v) for v in E2M1[:8]],
        "speed": speeds(arguments.repeats),
        "relative_mse": errors(),
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    for row in found["speed"]:
        print(f"{row['by']:<8} {row['with']:<11} {row['what']:<24} {row['gb_per_s']:8.3f} GB/s")
    for name, table in found["relative_mse"].items():
        print(f"{name:<14}" + "  ".join(f"{rule} {e:.5f}" for rule, e in table.items()))


if __name__ == "__main__":
    main()
