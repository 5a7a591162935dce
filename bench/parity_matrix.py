"""Every exporter x every backend x every kind of checkpoint, judged by `gptoss_adapters.parity` against one reference.

    python bench/parity_matrix.py [--full] [--keep] [--out bench/results/parity_matrix.json]

The reference is the parity checkpoint p1 (seed 0). Each kind holds the same weights, each exporter writes from each
kind, and each backend opens what it can read. Without --full: the fewest cells in which every pair of (kind, exporter),
(kind, backend) and (exporter, backend) that exists occurs; tests/parity/test_parity_matrix.py runs the same cells and
compares.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _paths

from gptoss_adapters.errors import GptOssError

RESULTS = _paths.RESULTS
TOKENIZER = _paths.TESTS / "data" / "gguf" / "src" / "tiny-mxfp4"  # a small vocabulary with gpt-oss's splitting rule
NONE = "none"  # no exporter: the engine opens the checkpoint itself
GGUF_EXPORTERS: dict[str, dict[str, str]] = {
    "to-gguf": {},
    "to-gguf f32": {"dense": "f32", "experts": "f32"},
    "to-gguf bf16": {"dense": "bf16", "experts": "bf16"},
    "to-gguf q8_0": {"dense": "q8_0", "experts": "q8_0"},
    "to-ollama": {},
}
FOLDER_EXPORTERS = {"to-hf": "hf-mxfp4", "to-hf bf16": "hf-bf16", "to-openai": "openai"}  # the kind that each writes
EXPORTERS = (NONE, *GGUF_EXPORTERS, *FOLDER_EXPORTERS)
TRANSFORMERS, GGUF = ("hf-mxfp4", "hf-bf16"), ("gguf",)
READS: dict[str, tuple[str, ...] | None] = {  # kinds of checkpoint; None: every one
    "torch": None,
    "transformers": TRANSFORMERS,
    "vllm": (*TRANSFORMERS, "hf-quark", "hf-compressed-tensors", "hf-bf16-out-in", "hf-defused"),
    "llama_cpp": GGUF,
    "llama_server": GGUF,
}
VLLM_PYTHON = (
    Path(os.environ.get("BIN_VLLM", _paths.ROOT / ".venv-vllm" / "bin")) / "python"
)  # its pins want an environment of their own
PROMPTS = 8  # of each family: the faults are the business of other tests
REFUSED = "REFUSED"  # the exporter does not take this kind
COST = {
    "llama_server": 1,
    "llama_cpp": 3,
    "torch": 5,
    "transformers": 15,
    "vllm": 30,
}  # seconds a cell, about: it is asked for few positions, they for all


@dataclass(frozen=True, order=True)
class Cell:
    """kind of checkpoint, exporter, backend."""

    kind: str
    exporter: str
    backend: str

    @property
    def pairs(self) -> set[tuple[str, str]]:
        return set(
            itertools.combinations((f"kind {self.kind}", f"exporter {self.exporter}", f"backend {self.backend}"), 2)
        )


def kinds() -> tuple[str, ...]:
    from helpers.kinds import DENSE_KINDS, MXFP4_KINDS

    return (*MXFP4_KINDS, *DENSE_KINDS, "gguf")


def cells() -> list[Cell]:
    """The full product, less what cannot be: an engine on a file that it does not read."""
    return [Cell(*c) for c in itertools.product(kinds(), EXPORTERS, READS) if _exists(Cell(*c))]


def _exists(cell: Cell) -> bool:
    made = "gguf" if cell.exporter in GGUF_EXPORTERS else FOLDER_EXPORTERS.get(cell.exporter, cell.kind)
    if cell.backend in ("transformers", "vllm") and cell.kind == "openai":
        # OpenAI's config names no token ids; the published ones lie outside p1's small vocabulary, which transformers'
        # config refuses
        return False
    reads = READS[cell.backend]
    return reads is None or made in reads


def spec(backend: str) -> str:
    """What is before the `=` of a target."""
    return f"vllm@{VLLM_PYTHON}" if backend == "vllm" else backend


def pairwise(all_cells: Iterable[Cell]) -> list[Cell]:
    """Few cells that hold every pair; of equals the one on the quicker engine. The same every time."""
    left = sorted(all_cells)
    missing = set().union(*(c.pairs for c in left))
    chosen = []
    while missing:
        best = max(left, key=lambda c: (len(c.pairs & missing), -COST[c.backend]))
        chosen.append(best)
        missing -= best.pairs
        left.remove(best)
    return sorted(chosen)


def new(path: Path, preset: str = "p1", seed: int = 0) -> None:
    """A parity checkpoint in HF's layout, with a vocabulary that llama.cpp's server can speak."""
    import shutil

    from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
    from gptoss_adapters.checkpoint.writing.writer import write

    write(plan_new(preset, path, seed=seed), sync=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (TOKENIZER / name).exists():
            shutil.copyfile(TOKENIZER / name, path / name)


@dataclass
class Bench:
    """Makes checkpoints and exports once, and runs cells."""

    folder: Path
    made: dict[tuple[str, str], Path] = field(default_factory=dict)
    run: Any = None

    def result(self, cell: Cell) -> dict[str, Any]:
        from gptoss_adapters.parity.runner import Options, Run

        if self.run is None:
            import torch

            from gptoss_adapters.checkpoint import open_checkpoint

            torch.set_num_threads(1)  # two only wait for each other on matrices this small
            self.run = Run(open_checkpoint(self.base), Options(text=False, certificate=False, timeout=120.0))
            self.run.prompts = [p for p in self.run.prompts if p.index < PROMPTS]
        start = time.monotonic()
        out: dict[str, Any] = {"kind": cell.kind, "exporter": cell.exporter, "backend": cell.backend}
        try:
            path = self.path(cell.kind, cell.exporter)
        except GptOssError as error:
            return out | {
                "verdict": REFUSED,
                "deviations": [],
                "worst_excess": None,
                "weights": {},
                "reason": error.what,
                "seconds": 0.0,
            }
        run = copy(self.run)
        run.options = replace(run.options, chunked=cell.backend != "vllm")  # that would start a second engine
        target = run.target(f"{spec(cell.backend)}={path}")
        out["verdict"] = target.verdict
        out |= {
            "deviations": [f"{d.fault}: {d.status}" for d in target.deviations],
            "worst_excess": _short(target.worst_excess),
        }
        out |= {
            "weights": target.weights.counts if target.weights else {},
            "reason": target.reason.replace(str(self.folder), ""),
        }
        return out | {"seconds": round(time.monotonic() - start, 1)}

    @property
    def base(self) -> Path:
        return self._once("hf-mxfp4", NONE, new)

    def path(self, kind: str, exporter: str) -> Path:
        """What a backend opens for this cell."""
        if exporter != NONE:
            source = self.path(kind, NONE)
            return self._once(kind, exporter, lambda path: _export(source, path, exporter))
        if kind == "hf-mxfp4":
            return self.base
        if kind == "gguf":
            return self.path("hf-mxfp4", "to-gguf")

        def write_kind_(path: Path) -> None:
            from helpers.kinds import write_kind

            write_kind(self.base, kind, path)

        return self._once(kind, NONE, write_kind_)

    def _once(self, kind: str, exporter: str, make: Callable[[Path], None]) -> Path:
        key = kind, exporter
        if key not in self.made:
            name = "-".join(part.replace(" ", "-") for part in key)
            path = self.folder / (f"{name}.gguf" if exporter in GGUF_EXPORTERS else name)
            make(path)
            self.made[key] = next(path.glob("*.gguf")) if exporter == "to-ollama" else path
        return self.made[key]


def _export(source: Path, path: Path, exporter: str, tokenizer: str | None = None) -> None:
    from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
    from gptoss_converters.ollama.to_ollama import OllamaOptions, plan_ollama
    from gptoss_converters.to_hf import HfOptions, plan_hf

    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.checkpoint.writing.writer import write

    opened = open_checkpoint(source)
    if exporter in FOLDER_EXPORTERS:
        path.mkdir()
        write(plan_hf(opened, path, HfOptions(FOLDER_EXPORTERS[exporter])).plan, sync=False)
    elif exporter == "to-ollama":
        path.mkdir()
        write(plan_ollama(opened, path, GgufOptions(), OllamaOptions(name="p1")).plan, sync=False)
    else:
        options: dict[str, Any] = {**GGUF_EXPORTERS[exporter], "tokenizer": tokenizer}
        write(plan_gguf(opened, path, GgufOptions(**options)).plan, sync=False)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def results(chosen: Sequence[Cell], folder: Path, jobs: int = 2) -> Iterator[dict[str, Any]]:
    """One row per cell, in order; `jobs` cells at a time."""
    if not chosen:
        return
    bench = Bench(folder)
    with ThreadPoolExecutor(jobs) as pool:
        yield bench.result(chosen[0])  # makes the reference
        for cell in chosen:
            with contextlib.suppress(GptOssError):  # shown in the cell's row
                bench.path(cell.kind, cell.exporter)
        yield from pool.map(bench.result, chosen[1:])


def kept_rows() -> dict[Cell, dict[str, Any]]:
    """The rows of both committed files."""
    rows = [row for file in RESULTS.glob("parity_matrix*.json") for row in json.loads(file.read_text())["results"]]
    return {Cell(row["kind"], row["exporter"], row["backend"]): row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every cell, not only every pair")
    parser.add_argument("--keep", action="store_true", help="run only the cells that no committed file has")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or RESULTS / ("parity_matrix_full.json" if options.full else "parity_matrix.json")
    chosen = cells() if options.full else pairwise(cells())
    kept = kept_rows() if options.keep else {}
    asked = [cell for cell in chosen if cell not in kept]
    with tempfile.TemporaryDirectory(prefix="parity-matrix-") as folder:
        for n, (cell, row) in enumerate(zip(asked, results(asked, Path(folder)), strict=True), 1):
            kept[cell] = row
            print(
                f"{n}/{len(asked)} {row['kind']} -> {row['exporter']} -> {row['backend']}: {row['verdict']} "
                f"({row['worst_excess']}, {row['seconds']} s) {row['reason'][:90]}",
                flush=True,
            )
    versions = {name: version(name) for name in ("torch", "transformers", "llama-cpp-python", "xllamacpp")}
    made = {
        "reference": "p1, seed 0",
        "pairs": len(set().union(*(c.pairs for c in chosen))),
        "cells": len(chosen),
        "of": len(cells()),
        "versions": versions,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    out.write_text(json.dumps({**made, "results": [kept[cell] for cell in chosen]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
