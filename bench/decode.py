"""Whole-model decode and prefill of a true-shape checkpoint: the reference, llama.cpp and transformers, same prompt,
same threads.

    python bench/decode.py [--layers 24] [--threads 2] [--work DIR] [--out bench/results/decode.json]

Makes the 20b-shape checkpoint (seed-made weights, true sizes) under --work, then runs every engine in a child of its
own, in turn, --rounds times; the best round counts, since these machines only ever get slower. All 24 layers take 14 GB
of memory, 41 GB under --work, and some 6 minutes a round on 2 cores, for no two engines' weights fit in memory
together.

The bandwidth ceiling is the fastest reading of the model's own weights that was seen in the run: plain summing passes
over all of them, or one of our own kernels in a decode step, whichever is faster. How fast a shared machine reads
changes from minute to minute: each engine's own round of summing passes stands beside its speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPT, DECODED = 128, 32
ENGINES = (
    "torch-q24",
    "torch-q16",
    "torch-q24-packed",
    "torch-q16-packed",
    "torch-bf16",
    "llama.cpp-bf16",
    "llama.cpp-q8_0",
    "transformers-bf16",
)
TIMEOUT = 400  # seconds, of one engine's round
TRANSFORMERS_MAX_LAYERS = 6  # it decodes the experts to bf16: 1.7 GB a layer
GGUF = {"llama.cpp-bf16": "bf16.gguf", "llama.cpp-q8_0": "q8_0.gguf"}


def prompt(n: int) -> list[int]:
    import random

    return [random.Random(0).randrange(199_000) for _ in range(1)] + [
        random.Random(i).randrange(199_000) for i in range(1, n)
    ]


# The children --------------------------------------------------------------------------------------------------------


def timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def run_torch(work: Path, threads: int, precision: str, dense: str = "stored") -> dict[str, Any]:
    import torch

    from gptoss_adapters.reference.model import GptOss

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    start = time.perf_counter()
    model = GptOss.from_checkpoint(
        work / "checkpoint", dtype=dtype, experts="q16" if precision == "bf16" else precision, dense=dense
    )
    load = time.perf_counter() - start
    warm = read_weights(model, threads)
    if dense == "packed":
        for name in model.checkpoint.tensors:
            if name.endswith(("_proj.weight", "unembedding.weight")):
                model.checkpoint.release(name)  # read just now, for the sake of the measurement
    ids = torch.tensor([prompt(PROMPT)])
    model(ids[:, :4], last_only=True)
    cache = model.new_cache()
    prefill = timed(lambda: model(ids, cache=cache, last_only=True))
    token = torch.tensor([[11]])
    model(token, cache=cache)
    steps = [timed(lambda: model(token, cache=cache)) for _ in range(DECODED)]
    spent = parts(model, cache, token)
    return {
        "load_s": load,
        "prefill_tps": PROMPT / prefill,
        "decode_s": sorted(steps),
        "parts_ms": spent,
        **warm,
        "kernel_gbps": kernel_rates(model, spent),
    }


def kernel_rates(model: Any, spent: dict[str, float]) -> dict[str, float]:
    """GB/s at which the weights of a part are read in a decode step."""
    config, tensors = model.config, model.checkpoint.tensors
    experts = (
        sum(info.nbytes for name, info in tensors.items() if ".experts." in name)
        * config.experts_per_token
        / config.num_experts
    )
    attention = sum(
        weight.nbytes for layer, _ in model.layers for name, weight in layer.w.items() if name.endswith("_proj.weight")
    )
    sizes = {"head": model.unembedding.nbytes, "experts": experts, "attention weights": attention}
    return {part: size / spent[part] / 1e6 for part, size in sizes.items()}


def read_weights(model: Any, threads: int) -> dict[str, float]:
    """Reads every weight but the embedding, 3 times; the best counts. -> bytes that one token reads, GB/s."""
    config, size = model.config, 0
    arrays = [
        model.checkpoint.raw(s)
        for name, info in model.checkpoint.tensors.items()
        if name != "embedding.weight"
        for s in info.sources
    ]
    for name, info in model.checkpoint.tensors.items():
        share = config.experts_per_token / config.num_experts if ".experts." in name else 1.0
        size += 0 if name == "embedding.weight" else round(info.nbytes * share)
    return {"bytes_per_token": size, "read_gbps": read_gbps(arrays, threads)}


def read_gbps(arrays: list[Any], threads: int) -> float:
    best = min(timed(lambda: sum_all(arrays, threads)) for _ in range(3))
    return sum(a.nbytes for a in arrays) / best / 1e9


def sum_all(arrays: list[Any], threads: int) -> None:
    """Sums every array as int64, each thread its share of each: plain reading, from outside of any kernel."""
    import torch

    torch.set_num_threads(1)
    words = [torch.from_numpy(a[: len(a) // 8 * 8].view("int64")) for a in arrays if len(a) >= 1 << 20]
    with ThreadPoolExecutor(threads) as pool:
        for whole in words:
            list(pool.map(torch.sum, whole.chunk(threads)))
    torch.set_num_threads(threads)


class Stopwatch:
    """Seconds spent in functions, by the name that `name(*arguments)` gives a call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def wrap(self, name: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            out = function(*args)
            key = name(*args)
            self.spent[key] = self.spent.get(key, 0.0) + time.perf_counter() - start
            return out

        return run


def clocked(model: Any, watch: Stopwatch) -> Any:
    """A copy of the model whose operations are timed."""

    def name_product(x: Any, weight: Any, bias: Any) -> str:
        named = {model.config.vocab_size: "head", model.config.num_experts: "router"}
        return named.get(weight.shape[0], "attention weights")

    ops = replace(
        model.ops,
        linear=watch.wrap(name_product, model.ops.linear),
        rms_norm=watch.wrap(lambda *_: "norms", model.ops.rms_norm),
        attend=watch.wrap(lambda *_: "attention scores", model.ops.attend),
    )
    layers = []
    for block in model.layers:
        experts = watch.wrap(lambda *_: "experts", block.moe.experts)
        attention, moe = replace(block.attention, ops=ops), replace(block.moe, ops=ops, experts=experts)
        layers.append(block._replace(attention=attention, moe=moe))
    return replace(model, ops=ops, layers=layers)


def parts(model: Any, cache: Any, token: Any) -> dict[str, float]:
    """Milliseconds of one decode step in each part; the rest is rotation, the cache and Python."""
    watch = Stopwatch()
    timed_model = clocked(model, watch)
    runs = []
    for _ in range(5):
        watch.spent = {}
        runs.append((timed(lambda: timed_model(token, cache=cache)), watch.spent))
    whole, fastest = min(runs, key=lambda run: run[0])
    return {k: v * 1e3 for k, v in fastest.items()} | {"Python and the rest": (whole - sum(fastest.values())) * 1e3}


def run_llama(work: Path, threads: int, file: str) -> dict[str, Any]:
    import numpy as np
    from llama_cpp import Llama

    read = read_gbps([np.memmap(work / file, np.uint8, "r")], threads)
    start = time.perf_counter()
    llama = Llama(
        str(work / file),
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    load = time.perf_counter() - start
    llama.eval(prompt(PROMPT))
    llama.reset()
    llama._ctx.kv_cache_clear()
    prefill = timed(lambda: llama.eval(prompt(PROMPT)))
    llama.eval([11])
    steps = [timed(lambda: llama.eval([11])) for _ in range(DECODED)]
    return {"load_s": load, "prefill_tps": PROMPT / prefill, "decode_s": sorted(steps), "read_gbps": read}


def run_transformers(work: Path, threads: int) -> dict[str, Any]:
    import torch
    from transformers import GptOssForCausalLM

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = GptOssForCausalLM.from_pretrained(work / "checkpoint", dtype=torch.bfloat16)
    load = time.perf_counter() - start
    ids = torch.tensor([prompt(PROMPT)])
    with torch.inference_mode():
        model(ids[:, :4])
        start = time.perf_counter()
        out = model(ids, use_cache=True)
        prefill = time.perf_counter() - start
        cache, steps = out.past_key_values, []
        for _ in range(DECODED):
            steps.append(timed(lambda: model(torch.tensor([[11]]), past_key_values=cache, use_cache=True)))
    return {"load_s": load, "prefill_tps": PROMPT / prefill, "decode_s": sorted(steps)}


def child(engine: str, work: Path, threads: int) -> None:
    if engine.startswith("torch"):
        result = run_torch(work, threads, *engine.split("-")[1:])
    elif engine.startswith("llama"):
        result = run_llama(work, threads, GGUF[engine])
    else:
        result = run_transformers(work, threads)
    steps = result.pop("decode_s")
    result |= {"decode_tps": 1 / steps[0], "decode_tps_median": 1 / steps[len(steps) // 2]}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    result |= {
        "peak_rss_gb": int(status["VmHWM"].split()[0]) / 1e6,
        "anonymous_gb": int(status["RssAnon"].split()[0]) / 1e6,
    }
    print(json.dumps(result))


# The parent ----------------------------------------------------------------------------------------------------------


CONVERT = [sys.executable, "-m", "gptoss_converters.cli"]


def make(work: Path, layers: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    config = work / "checkpoint" / "config.json"
    if not config.exists():
        subprocess.run([*CONVERT, "new", "20b-shape", "--layers", str(layers), "-o", work / "checkpoint"], check=True)
    elif json.loads(config.read_text())["num_hidden_layers"] != layers:
        raise SystemExit(f"{config} has another number of layers: remove {work} or name another --work")


def run_engine(engine: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One round in a child; its GGUF is made first if need be. None, and why on stderr, when the engine fails or
    takes too long.
    """
    file = GGUF.get(engine)
    try:
        if file and not (options.work / file).exists():
            dense = file.removesuffix(".gguf")
            subprocess.run(
                [*CONVERT, "to-gguf", options.work / "checkpoint", "-o", options.work / file, "--dense", dense],
                check=True,
            )
        command = [
            sys.executable,
            __file__,
            "--child",
            engine,
            "--work",
            options.work,
            "--threads",
            str(options.threads),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as e:
        print(f"{engine}: {e}", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{engine}: {done.stderr[-1000:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{engine}: {result['decode_tps']:.2f} tokens/s, prefill {result['prefill_tps']:.1f}, read "
        f"{result.get('read_gbps', 0):.1f} GB/s",
        file=sys.stderr,
    )
    return result


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    top = max(rounds, key=lambda r: r["decode_tps"])
    return top | {"prefill_tps": max(r["prefill_tps"] for r in rounds), "rounds": [r["decode_tps"] for r in rounds]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench-decode"))
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.work, options.threads)
        return
    make(options.work, options.layers)
    rounds: dict[str, list[dict[str, Any]]] = {}
    for n, engine in itertools.product(range(options.rounds), options.engines):
        if engine.startswith("transformers") and options.layers > TRANSFORMERS_MAX_LAYERS:
            if not n:
                print(f"{engine}: not run, {options.layers} layers need {options.layers * 1.7:.0f} GB", file=sys.stderr)
            continue
        result = run_engine(engine, options)
        if result:
            rounds.setdefault(engine, []).append(result)
    report({engine: best(runs) for engine, runs in rounds.items()}, options)


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    ours = [r for r in results.values() if "kernel_gbps" in r]
    read = {"summing": max((r["read_gbps"] for r in ours), default=0.0)}
    for part in ("head", "experts", "attention weights"):
        read[part] = max((r["kernel_gbps"][part] for r in ours), default=0.0)
    ceiling = max(read.values()) * 1e9 / ours[0]["bytes_per_token"] if ours else 0.0
    rows = {
        "layers": options.layers,
        "threads": options.threads,
        "prompt": PROMPT,
        "decoded": DECODED,
        "machine": machine(),
        "read_gbps": read,
        "ceiling_tps": ceiling,
        "results": results,
    }
    print(
        f"{'engine':20} {'decode tok/s':>12} {'prefill tok/s':>13} {'peak RSS GB':>11} {'of ceiling':>10} "
        f"{'GB/s meanwhile':>14}"
    )
    for engine, r in results.items():
        r["of_ceiling"] = r["decode_tps"] / ceiling if ceiling else None
        print(
            f"{engine:20} {r['decode_tps']:12.2f} {r['prefill_tps']:13.1f} {r['peak_rss_gb']:11.2f} "
            f"{r['of_ceiling'] or 0:10.2f} {r.get('read_gbps', 0):14.1f}"
        )
    print("read at, GB/s:", ", ".join(f"{k} {v:.1f}" for k, v in read.items()), f"-> ceiling {ceiling:.2f} tok/s")
    for engine, r in results.items():
        if "parts_ms" in r:
            print(
                engine,
                "ms per token:",
                ", ".join(f"{k} {v:.1f}" for k, v in sorted(r["parts_ms"].items(), key=lambda kv: -kv[1])),
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def machine() -> dict[str, str]:
    import importlib.metadata as metadata

    from gptoss_adapters import mxfp4

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    names = ("torch", "transformers", "llama-cpp-python")
    return {
        "cpu": cpu,
        "python": platform.python_version(),
        "mxfp4": mxfp4.backend(),
        **{n: metadata.version(n) for n in names},
    }


if __name__ == "__main__":
    main()
