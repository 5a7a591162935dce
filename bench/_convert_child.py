"""One measured run for bench/convert.py: `SOURCE OUT THREADS [sync|read_back|sha256|tokenizer]`, or `kernel
[UPSTREAM]`; prints JSON.

It says when it is ready and starts at a line on stdin, when everything is imported: opening, planning and writing
count, the interpreter's start does not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def convert(source: str, out: str, threads: str, flag: str = "") -> dict[str, Any]:
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
    from gptoss_converters.gguf.tokenizer import find_tokenizer, tokenizer_keys

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.checkpoint.writing.writer import write

    print("ready", flush=True)
    sys.stdin.readline()
    wall, cpu = time.perf_counter(), time.process_time()
    checkpoint = open_checkpoint(source)
    seconds: dict[str, float] = {}
    if flag == "tokenizer":
        wall, cpu = time.perf_counter(), time.process_time()
        b"".join(k.pack() for k in tokenizer_keys(find_tokenizer(checkpoint, None), checkpoint))
    else:
        plan = plan_gguf(checkpoint, Path(out), GgufOptions(tokenizer="none", sha256=flag == "sha256")).plan
        seconds = {"plan": time.perf_counter() - wall}
        seconds |= write(plan, threads=int(threads), sync=flag == "sync", read_back=flag == "read_back").seconds
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "seconds": seconds}


def best(function: Callable[[], object], nbytes: int, seconds: float = 2.0) -> float:
    """GB/s of the fastest of many runs, in CPU time."""
    least, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.thread_time()
        function()
        least = min(least, time.thread_time() - begin)
    return nbytes / least / 1e9


def kernel(upstream: str = "") -> dict[str, Any]:
    """Four experts of 20b's gate_up: 5760 rows of 90 blocks each. `apart`: gate and up in a pass of their own each,
    which reads the memory twice; the writer makes both from a chunk in the cache.
    """
    from gptoss_adapters import mxfp4

    print("ready", flush=True)
    rng = np.random.default_rng(0)
    rows, groups = 4 * 5760, 90
    blocks, scales = (
        rng.integers(0, 256, (rows, groups, 16), np.uint8),
        rng.integers(118, 126, (rows, groups), np.uint8),
    )
    nbytes = blocks.nbytes + scales.nbytes
    flat, copy = blocks.reshape(-1), np.empty(blocks.nbytes, np.uint8)
    halves = [np.empty((rows // 2, groups * 17), np.uint8) for _ in range(2)]

    whole = np.empty((rows, groups * 17), np.uint8)

    def apart() -> None:
        for k in range(2):
            mxfp4.hf_to_ggml(blocks, scales, out=halves[k], row_start=k, row_step=2)

    rates = {
        "memcpy": best(lambda: np.copyto(copy, flat), blocks.nbytes),
        "repack": best(lambda: mxfp4.hf_to_ggml(blocks, scales, out=whole), nbytes),
        "repack apart": best(apart, nbytes),
    }
    if upstream:
        rates["upstream"] = best(_upstream_repack(blocks, scales), nbytes, 10.0)
    return {"GB/s": rates}


def _upstream_repack(blocks: Any, scales: Any) -> Callable[[], object]:
    """llama.cpp's own operations on the same data, taken from its source tree: nibbles, then scale and nibbles side
    by side.
    """
    import torch
    from conversion.gpt_oss import GptOssModel

    model = object.__new__(GptOssModel)
    b, s = torch.from_numpy(blocks), torch.from_numpy(scales)

    def run() -> None:
        for k in range(2):
            nibbles = model.transform_nibble_layout(b[k::2])
            torch.cat((s[k::2].unsqueeze(-1), nibbles), dim=-1).numpy()

    return run


if __name__ == "__main__":
    print(json.dumps(kernel(*sys.argv[2:]) if sys.argv[1] == "kernel" else convert(*sys.argv[1:])))
