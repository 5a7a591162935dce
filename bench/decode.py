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
from pathlib import Path
from typing import Any

from _decode_engines import DECODED, GGUF, PROMPT, run
from _machine import cpu_model

ROOT = Path(__file__).parents[1]
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
        print(json.dumps(run(options.child, options.work, options.threads)))
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

    names = ("torch", "transformers", "llama-cpp-python")
    return {
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "mxfp4": mxfp4.backend(),
        **{n: metadata.version(n) for n in names},
    }


if __name__ == "__main__":
    main()
