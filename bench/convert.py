"""Benchmark of `gptoss-convert to-gguf` beside cp, cmp, sha256sum and llama.cpp's converter, in one run; JSON in
bench/results.

    python bench/convert.py --upstream llama_cpp_python-0.3.36/vendor/llama.cpp [--layers 4] [--rounds 5] [--whole]

Every way is measured in a process of its own, in turn, round after round: minima of wall and of CPU, medians of wall,
peak memory. The
quick ways run twice in a row, both counted: what the page cache asks memory for differs between them, and only after
itself does a way find its own pieces freed. The source is a cut of the 20b-shape preset, in the page cache; source and
output must both fit in memory. Before each run the
disk is made idle, and only then is the output of the run before deleted: every way finds the same memory, just freed.
(A virtual machine gives free memory back to its host after some seconds, and touching it again costs more than the
whole copy.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _machine import cpu_model

HERE = Path(__file__).parent
THREADS = 2
PROGRAM = [sys.executable, "-m", "gptoss_converters.cli", "to-gguf"]
CHILD = HERE / "_convert_child.py"
# What must hold: name, ratio of which two ways in what, and the bound.
TARGETS: list[tuple[str, str, str, str, Callable[[float], bool], str]] = [
    ("wall speed over cp, warm", "cp", "ours", "wall", lambda r: r >= 1.0, ">= 1.0"),
    ("wall speed over cp, fsync on both", "cp + fsync", "ours + fsync", "wall", lambda r: r >= 1.0, ">= 1.0"),
    ("CPU against cp", "ours", "cp", "cpu", lambda r: r <= 1.5, "<= 1.5"),
    (
        "wall speed over cp && cmp, with read-back",
        "cp && cmp",
        "ours + read-back",
        "wall",
        lambda r: r >= 1.0,
        ">= 1.0",
    ),
    (
        "wall speed over cp && sha256sum, with --sha256",
        "cp && sha256sum",
        "ours + sha256",
        "wall",
        lambda r: r >= 1.0,
        ">= 1.0",
    ),
    ("wall speed over upstream, whole program", "upstream", "program", "wall", lambda r: r >= 5.0, ">= 5"),
]


@dataclass
class Sample:
    """One run: wall and CPU seconds, peak resident and peak anonymous bytes, and what a child printed."""

    wall: float
    cpu: float
    rss: int
    anonymous: int
    said: dict[str, Any]


def measure(
    command: list[str] | str, environment: dict[str, str] | None = None, settle: Callable[[], None] | None = None
) -> Sample:
    """Runs a command to its end, watching the memory of its main process. `settle` is done first; by a child of
    ours, when it is ready.
    """
    pipe, ours = subprocess.PIPE, str(CHILD) in command
    if settle and not ours:
        settle()
    before = os.times()
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, shell=isinstance(command, str), stdin=pipe if ours else None, stdout=pipe, stderr=pipe, env=environment
    )
    peak = {"RssAnon": 0, "VmRSS": 0}
    watcher = threading.Thread(target=_watch, args=(process.pid, peak))
    watcher.start()
    if ours:
        assert process.stdout
        process.stdout.readline()
        if settle:
            settle()
    out, err = process.communicate(b"go\n" if ours else None)
    wall = time.perf_counter() - begin
    after = os.times()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command}: {err.decode()[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    said = json.loads(out) if out.startswith(b"{") else {}
    return Sample(
        said.get("wall", wall), said.get("cpu", cpu), peak["VmRSS"], said.get("anonymous", peak["RssAnon"]), said
    )


def _watch(pid: int, peak: dict[str, int]) -> None:
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        seen = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(tuple(peak))}
        if not seen:
            return
        for key in peak:
            peak[key] = max(peak[key], seen.get(key, 0))
        time.sleep(0.01)


def ways(source: Path, out: Path, upstream: Path | None) -> dict[str, Callable[[], Sample]]:
    """Name -> one run of it."""
    weights, copy, gguf = source / "model.safetensors", out / "copy", out / "out.gguf"

    def settle() -> None:
        os.sync()
        for file in out.iterdir():
            file.unlink()

    def run(command: list[str] | str, environment: dict[str, str] | None = None) -> Callable[[], Sample]:
        return lambda: measure(command, environment, settle)

    def child(*flags: str) -> Callable[[], Sample]:
        return run([sys.executable, str(CHILD), str(source), str(gguf), str(THREADS), *flags])

    table = {
        "cp": run(["cp", str(weights), str(copy)]),
        "ours": child(),
        "cp + fsync": run(f"cp {weights} {copy} && sync {copy}"),
        "ours + fsync": child("sync"),
        "cp && cmp": run(f"cp {weights} {copy} && cmp {weights} {copy}"),
        "ours + read-back": child("read_back"),
        "cp && sha256sum": run(f"cp {weights} {copy} && sha256sum {copy}"),
        "ours + sha256": child("sha256"),
        "program": run([*PROGRAM, str(source), "-o", str(gguf), "--threads", str(THREADS)]),
    }
    if upstream:
        script = [sys.executable, str(upstream / "convert_hf_to_gguf.py"), str(source), "--outfile", str(gguf)]
        table["upstream"] = run(script, {**os.environ, "PYTHONPATH": str(upstream / "gguf-py")})
    return table


def tokenizers(source: Path, out: Path, upstream: Path | None) -> dict[str, Callable[[], Sample]]:
    """The vocabulary alone; upstream's time is that of its whole program without tensors."""
    table = {"tokenizer": lambda: measure([sys.executable, str(CHILD), str(source), "-", str(THREADS), "tokenizer"])}
    if upstream:
        script = [
            sys.executable,
            str(upstream / "convert_hf_to_gguf.py"),
            str(source),
            "--outfile",
            str(out / "vocabulary.gguf"),
            "--vocab-only",
        ]
        table["upstream tokenizer"] = lambda: measure(script, {**os.environ, "PYTHONPATH": str(upstream / "gguf-py")})
    return table


TWICE = ("cp", "ours", "cp + fsync", "ours + fsync", "cp && cmp", "ours + read-back")
RARE = {"upstream": 1, "upstream tokenizer": 1, "program": 2}  # rounds of what is slow


@contextmanager
def made_source(layers: int | None, where: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=where) as folder:
        cut = ["--layers", str(layers)] if layers else []
        measure([sys.executable, "-m", "gptoss_converters.cli", "new", "20b-shape", "-o", f"{folder}/source", *cut])
        yield Path(folder) / "source"


def run_all(table: dict[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in table}
    for number in range(rounds):
        for name, way in table.items():
            if number >= RARE.get(name, rounds):
                continue
            for _ in range(2 if name in TWICE else 1):
                samples[name].append(way())
                print(
                    f"round {number + 1}: {name:<20} {samples[name][-1].wall:8.3f} s wall "
                    f"{samples[name][-1].cpu:8.3f} s CPU",
                    file=sys.stderr,
                )
    return samples


def summary(samples: dict[str, list[Sample]]) -> dict[str, dict[str, Any]]:
    out = {}
    for name, runs in samples.items():
        out[name] = {
            "wall": min(s.wall for s in runs),
            "wall median": statistics.median(s.wall for s in runs),
            "cpu": min(s.cpu for s in runs),
            "peak rss MB": round(max(s.rss for s in runs) / 1e6, 1),
            "peak anonymous MB": round(max(s.anonymous for s in runs) / 1e6, 1),
            "runs": len(runs),
            **({"phases": runs[-1].said["seconds"]} if "seconds" in runs[-1].said else {}),
        }
    return out


def verdicts(table: dict[str, dict[str, Any]], kernel: dict[str, float]) -> list[dict[str, Any]]:
    found = [
        {
            "what": what,
            "ratio": table[a][field] / table[b][field],
            "wanted": bound,
            "ok": good(table[a][field] / table[b][field]),
        }
        for what, a, b, field, good, bound in TARGETS
        if a in table and b in table
    ]
    ours = [v for k, v in table.items() if k.startswith("ours") or k == "program"]
    found.append(_bound("peak anonymous memory, MB", max(v["peak anonymous MB"] for v in ours), 300, below=True))
    found.append(_bound("tokenizer part, s", table["tokenizer"]["wall"], 1.0, below=True))
    found.append(_bound("repack against memcpy", kernel["repack"] / kernel["memcpy"], 0.7))
    found.append(
        _bound("repack against memcpy, gate and up in two passes", kernel["repack apart"] / kernel["memcpy"], 0.65)
    )
    if "upstream" in kernel:
        found.append(_bound("repack against upstream's", kernel["repack apart"] / kernel["upstream"], 10))
    return found


def _bound(what: str, value: float, limit: float, below: bool = False) -> dict[str, Any]:
    return {
        "what": what,
        "ratio": value,
        "wanted": f"{'<=' if below else '>='} {limit}",
        "ok": value <= limit if below else value >= limit,
    }


def kernels(upstream: Path | None) -> dict[str, float]:
    """GB/s of packed input on one core, in and out of reused buffers: memcpy, our repack, and upstream's torch
    operations.
    """
    command = [sys.executable, str(CHILD), "kernel", *([str(upstream)] if upstream else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if upstream:
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(upstream / "gguf-py"), str(upstream), os.environ.get("PYTHONPATH", "")]
        )
    return measure(command, environment).said["GB/s"]


def provenance() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "memory GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "numpy": version("numpy"),
        "load before": os.getloadavg()[0],
        "seed": 0,
        "date": time.strftime("%Y-%m-%d"),
    }


def whole_model(source: Path, out: Path) -> dict[str, float]:
    done = measure([*PROGRAM, str(source), "-o", str(out), "--json"])
    return {
        "bytes": done.said["nbytes"],
        "seconds": done.said["seconds"],
        "peak anonymous MB": done.anonymous / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--upstream",
        type=Path,
        default=os.environ.get("LLAMA_CPP_SOURCE"),
        help="llama.cpp as vendored by llama-cpp-python",
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="convert the whole 13.8 GB preset once, too")
    parser.add_argument(
        "--dir", type=Path, default=Path(tempfile.gettempdir()), help="where 2 x 4.2 GB fit (--whole: 28 GB)"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "convert.json")
    a = parser.parse_args()
    upstream = Path(a.upstream) if a.upstream else None
    result: dict[str, Any] = {"provenance": provenance()}
    out = Path(tempfile.mkdtemp(dir=a.dir))
    try:
        result["kernels GB/s"] = kernels(upstream)
        with made_source(a.layers, a.dir) as source:
            result["source bytes"] = (source / "model.safetensors").stat().st_size
            result["ways"] = summary(run_all(tokenizers(source, out, upstream), a.rounds))
            shutil.copyfile(source / "model.safetensors", out / "first")  # the memory that the first run finds freed
            result["ways"] |= summary(run_all(ways(source, out, upstream), a.rounds))
        result["verdicts"] = verdicts(result["ways"], result["kernels GB/s"])
        if a.whole:
            with made_source(None, a.dir) as source:
                result["whole 20b"] = whole_model(source, out / "o.gguf")
    finally:
        shutil.rmtree(out)
    a.out.write_text(json.dumps(result, indent=2) + "\n")
    for v in result["verdicts"]:
        print(f"{'ok  ' if v['ok'] else 'MISS'} {v['what']:<50} {v['ratio']:8.2f}  (wanted {v['wanted']})")


if __name__ == "__main__":
    main()
