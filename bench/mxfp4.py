"""MXFP4 products beside the machine's read bandwidth, llama.cpp, torch and transformers: one process, interleaved, 1
and 2 threads.

    python bench/mxfp4.py [--seconds 120] [--experts 64] [--huge-pages] [--out bench/results/mxfp4.json]

The matrix is one expert's gate_up of gpt-oss-20b (5760 x 2880); enough experts are cycled through that no cache holds
them.
One token: a call multiplies 4 experts, as decoding does, and counts packed weight bytes. Many tokens: one expert,
FLOP/s. All weights, ours and llama.cpp's, lie in ordinary 4 KiB pages, as mapped checkpoints and llama.cpp's own
buffers do; or all in huge ones. Errors are relative rms against float64, on N(0, 1) activations of which every 97th is
30 times as large.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import cpu_model
from _mxfp4_ggml import Ggml, GgmlExperts, advise
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_adapters import mxfp4
from gptoss_adapters.kernels.library import library
from gptoss_adapters.spec import GPT_OSS_20B

ROWS, WIDTH = 2 * GPT_OSS_20B.intermediate_size, GPT_OSS_20B.hidden_size
GROUPS, TOP_K = WIDTH // 32, GPT_OSS_20B.experts_per_token
BYTES = ROWS * GROUPS * 17  # packed, one expert
TOKENS = (4, 16, 64, 256)
ISAS = ("amx", "avx512vbmi", "avx512vnni", "avx2", "portable")  # best first


@dataclass
class Way:
    """One way to multiply: `run(i)` does sample i; `work` is bytes or FLOP of a sample, `y()` the result of the
    last one.
    """

    name: str
    threads: int
    tokens: int
    work: float
    run: Callable[[int], object]
    error: float | None = None
    seconds: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        best, median = min(self.seconds), float(np.median(self.seconds))
        rates = {"best": self.work / best / 1e9, "median": self.work / median / 1e9}
        return {
            "name": self.name,
            "threads": self.threads,
            "tokens": self.tokens,
            "unit": "GB/s" if self.tokens == 1 else "GFLOP/s",
            **rates,
            "ms": best * 1e3,
            "samples": len(self.seconds),
            "error": self.error,
        }


def memory(shape: tuple[int, ...], huge: bool) -> np.ndarray:
    """uint8 in private anonymous memory (shared memory, mmap's default, gets no huge pages), in pages of the kind
    asked for.
    """
    size = int(np.prod(shape))
    area = np.frombuffer(mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    advise(area.ctypes.data, area.size, huge)
    return area[:size].reshape(shape)


class Rig:
    """The weights in each spelling, the activations and the truth."""

    def __init__(self, experts: int, huge: bool) -> None:
        rng = np.random.default_rng(0)
        self.count = experts
        self.blocks, self.scales = memory((experts, ROWS, GROUPS, 16), huge), memory((experts, ROWS, GROUPS), huge)
        for e in range(experts):
            self.blocks[e] = rng.integers(0, 256, self.blocks[e].shape, np.uint8)
            self.scales[e] = rng.integers(115, 125, self.scales[e].shape, np.uint8)
        self.x = rng.standard_normal((max(TOKENS), WIDTH)).astype(np.float32)
        self.x[:, ::97] *= 30
        self.truth = self.x.astype(np.float64) @ mxfp4.decode(self.blocks[0], self.scales[0], np.float64).T
        ggml = Ggml()
        packed = [mxfp4.hf_to_ggml(self.blocks[e], self.scales[e]) for e in range(experts)]
        self.ggml = {
            "ggml repack": GgmlExperts(ggml, packed, WIDTH, True, huge),
            "ggml plain": GgmlExperts(ggml, packed[: experts // 2], WIDTH, False, huge),
        }

    def error(self, y: np.ndarray) -> float:
        reference = self.truth[: len(y)]
        return float(np.sqrt(((y - reference) ** 2).mean() / (reference**2).mean()))


def read_ways(rig: Rig) -> Iterator[Way]:
    """Plain summing of the same memory, split among Python threads (torch without OpenMP)."""
    words = torch.from_numpy(rig.blocks.reshape(rig.count, -1).view(np.int64))
    pool = ThreadPoolExecutor(2)
    for threads in (1, 2):

        def run(i: int, threads: int = threads) -> None:
            part = words[i * 4 * TOP_K % (rig.count - 4 * TOP_K + 1) :][: 4 * TOP_K].reshape(-1)
            pieces = part.chunk(threads)
            list(pool.map(torch.sum, pieces)) if threads > 1 else pieces[0].sum()

        yield Way("read only", threads, 1, 4 * TOP_K * ROWS * GROUPS * 16, run)


def our_ways(rig: Rig) -> Iterator[Way]:
    native = library()
    if native is None:
        raise SystemExit("the native kernels are not built: run `make native`")
    for isa in ISAS:
        if not native.select(isa.encode()):
            continue
        for tokens in (1, *TOKENS):
            if isa == "portable" and tokens > 1:
                continue
            for precision in ("q24", "q16", "q8") if isa != "portable" else ("q24",):
                for threads in (1, 2):
                    yield our_way(rig, native, isa, precision, tokens, threads)


def our_way(rig: Rig, native: Any, isa: str, precision: str, tokens: int, threads: int) -> Way:
    together = TOP_K if tokens == 1 else 1
    blocks, scales = rig.blocks.reshape(-1, GROUPS, 16), rig.scales.reshape(-1, GROUPS)

    def multiply(first: int) -> np.ndarray:
        native.select(isa.encode())
        rows = slice(first * ROWS, (first + together) * ROWS)
        return mxfp4.matmul(rig.x[:tokens], blocks[rows], scales[rows], threads=threads, precision=precision)

    work = BYTES * together if tokens == 1 else 2 * ROWS * WIDTH * tokens
    error = rig.error(multiply(0)[:, :ROWS])
    return Way(
        f"{isa} {precision}",
        threads,
        tokens,
        work,
        lambda i: multiply(i * together % (rig.count - together + 1)),
        error,
    )


def ggml_ways(rig: Rig) -> Iterator[Way]:
    for name, experts in rig.ggml.items():
        for tokens in (1, *TOKENS):
            together, available = (TOP_K if tokens == 1 else 1), len(experts.weights)
            products = [
                experts.product(first, together, rig.x[:tokens])
                for first in range(0, available - together + 1, together)
            ]
            products[0][0](1)
            error = rig.error(products[0][1]()[0])
            work = BYTES * together if tokens == 1 else 2 * ROWS * WIDTH * tokens
            for threads in (1, 2):
                yield Way(name, threads, tokens, work, lambda i, p=products, n=threads: p[i % len(p)][0](n), error)


def dequantise_ways(rig: Rig) -> Iterator[Way]:
    """What a layer costs when the weights are unpacked for each use: our rewrite of the steps in torch, and
    transformers' own.
    """
    x = torch.from_numpy(rig.x[:1]).bfloat16()
    values = torch.from_numpy(
        mxfp4.decode(np.arange(256, dtype=np.uint8).repeat(16).reshape(-1, 1, 16), np.full((256, 1), 127, np.uint8))[
            :, :2
        ]
    ).bfloat16()

    def in_torch(e: int) -> torch.Tensor:
        blocks, scales = torch.from_numpy(rig.blocks[e]), torch.from_numpy(rig.scales[e])
        pairs = values[blocks.long()]
        weight = torch.ldexp(pairs, scales[..., None, None].int() - 127).reshape(ROWS, WIDTH)
        return weight @ x[0]

    def in_transformers(e: int) -> torch.Tensor:
        weight = convert_moe_packed_tensors(
            torch.from_numpy(rig.blocks[e : e + 1]), torch.from_numpy(rig.scales[e : e + 1])
        )
        return x @ weight[0]

    for name, way in (("torch dequantise + mv", in_torch), ("transformers dequantise + mm", in_transformers)):
        for threads in (1, 2):

            def run(i: int, way: Callable[[int], torch.Tensor] = way, threads: int = threads) -> torch.Tensor:
                torch.set_num_threads(threads)
                return way(i % rig.count)

            yield Way(name, threads, 1, BYTES, run, rig.error(run(0).float().numpy().reshape(1, -1)))


def measure(ways: list[Way], seconds: float) -> None:
    """Round after round through all ways that have not used up their share of the time; 3 samples at least, 200 at
    most.

    So quick ways, which noise hits hardest, get many samples. Each sample reads other weights than the one before.
    """
    share, number = seconds / len(ways), itertools.count()
    for way in ways:
        way.run(0)
    while unfinished := [w for w in ways if len(w.seconds) < 3 or (len(w.seconds) < 200 and sum(w.seconds) < share)]:
        for way in unfinished:
            i = next(number)
            start = time.perf_counter()
            way.run(i)
            way.seconds.append(time.perf_counter() - start)


def promises(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The issue's ratios, from best rates: (what, reached, promised)."""
    rate = {(r["name"], r["threads"], r["tokens"]): r["best"] for r in rows}
    best_isa = next(isa for isa in ISAS if (f"{isa} q24", 1, 1) in rate)
    return [
        {"what": what, "reached": reached, "promised": promised, "meets": reached >= promised}
        for threads in (1, 2)
        for what, reached, promised in (
            *few_tokens(rate, best_isa, threads),
            *many_tokens(rate, best_isa, threads),
        )
    ]


Promise = tuple[str, float, float]
"""What, reached, promised."""
Rates = dict[tuple[str, int, int], float]
"""(Name, threads, tokens) -> the best rate."""


def few_tokens(rate: Rates, best_isa: str, threads: int) -> Iterator[Promise]:
    """Decoding, where the weights' bytes are what takes the time."""
    for precision in ("q8", "q16", "q24"):
        reached = rate[f"{best_isa} {precision}", threads, 4] / rate["ggml repack", threads, 4]
        yield f"{best_isa} {precision} / ggml, 4 tokens, {threads} threads", reached, 1.0
    for precision in ("q16", "q24"):
        for isa, share in ((best_isa, 0.85), ("avx2", 0.6)):
            if (f"{isa} {precision}", threads, 1) in rate:
                reached = rate[f"{isa} {precision}", threads, 1] / rate["read only", threads, 1]
                yield f"{isa} {precision}, {threads} threads: share of read bandwidth", reached, share
        peer = max(rate[name, threads, 1] for name in ("ggml repack", "ggml plain"))
        reached = rate[f"{best_isa} {precision}", threads, 1] / peer
        yield f"{best_isa} {precision} / ggml, 1 token, {threads} threads", reached, 1.4


def many_tokens(rate: Rates, best_isa: str, threads: int) -> Iterator[Promise]:
    """Prefill beside ggml, and any product beside those that dequantise first."""
    for tokens in (64, 256):
        reached = rate[f"{best_isa} q8", threads, tokens] / rate["ggml repack", threads, tokens]
        yield f"{best_isa} q8 / ggml, {tokens} tokens, {threads} threads", reached, 2.0
    for name in ("torch dequantise + mv", "transformers dequantise + mm"):
        reached = rate[f"{best_isa} q24", threads, 1] / rate[name, threads, 1]
        yield f"{best_isa} q24 / {name}, {threads} threads", reached, 200.0


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "llama-cpp-python", "numpy")}
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **packages,
        "experts": args.experts,
        "seconds": args.seconds,
        "huge_pages": args.huge_pages,
        "seed": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=120,
        help="for all samples together, shared out evenly; preparing takes about a minute more",
    )
    parser.add_argument("--experts", type=int, default=64, help="64 are 564 MB packed")
    parser.add_argument(
        "--huge-pages", action="store_true", help="all weights in transparent huge pages, ours and llama.cpp's"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mxfp4.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rig = Rig(args.experts, args.huge_pages)
    ways = [*read_ways(rig), *our_ways(rig), *ggml_ways(rig), *dequantise_ways(rig)]
    measure(ways, args.seconds)
    rows = sorted((way.row() for way in ways), key=lambda r: (r["tokens"], r["threads"], -r["best"]))
    for r in rows:
        error = "" if r["error"] is None else f"error {r['error']:.1e}"
        print(
            f"{r['tokens']:4} tokens {r['threads']} threads  {r['name']:30} {r['best']:9.2f} best "
            f"{r['median']:9.2f} median {r['unit']:8} {r['ms']:8.3f} ms  {error}"
        )
    found = promises(rows)
    for p in found:
        print(f"{'ok   ' if p['meets'] else 'SHORT'} {p['what']:60} {p['reached']:8.2f}  (promised {p['promised']})")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"conditions": conditions(args), "rows": rows, "promises": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
