"""Is anything slower than in another checkout? Each row in three children: the other checkout, this one, and the
other one again as a control, which take turns.

    git worktree add /tmp/old 0caed59 && (cd /tmp/old && make native)
    python bench/against.py /tmp/old [--starts 5] [--rounds 7] [--rows gemv,parse] [--out bench/results/against.json]

Each row starts its children anew --starts times: where a process's pages happen to lie decides up to a tenth of a
kernel's time for as long as it lives. `new/old` of minima and of medians stands beside the control's `old/old`: a row
is not slower while its ratio of CPU time is at most the control's, or at most 1 / 0.97, whichever is larger. `decode`
and `convert` want --work DIR with 4 GB free: a cut of the 20b-shape with 4 layers is made there.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHILD = Path(__file__).with_name("_against_child.py")
ROWS = (
    "gemv",
    "decode",
    "convert",
    "render",
    "parse",
    "parse token by token",
    "serve long answers",
    "serve short answers",
)
LOOSE = 1 / 0.97  # a ratio of times that counts as the same even where the control is quieter


class Child:
    """A process over one checkout's sources, which runs its row once for each line that it is sent."""

    def __init__(self, checkout: Path, row: str, work: Path) -> None:
        path = os.pathsep.join(str(checkout / part) for part in ("", "harmony", "converters"))
        environment = {**os.environ, "AGAINST_PATH": path, "PYTHONPATH": path}
        work.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), row, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=work,  # python -m would look for packages in this one first
        )
        self.source = self._answer()["source"]

    def run(self) -> dict[str, float]:
        """Seconds of CPU and of wall time that the row took."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the child ended with {self._process.wait()}")
        return json.loads(line)


def measure(row: str, old: Path, work: Path, starts: int, rounds: int) -> dict[str, Any]:
    sides = {"old": old, "new": ROOT, "control": old}
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(starts):
        for side, runs in take_turns(row, sides, work, rounds).items():
            taken[side] += runs
    return {"row": row, **{clock: compare(taken, clock) for clock in ("cpu", "wall")}}


def take_turns(row: str, sides: dict[str, Path], work: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The runs of one child for each side."""
    children = {side: Child(checkout, row, work) for side, checkout in sides.items()}
    for side, child in children.items():
        assert Path(child.source).is_relative_to(sides[side]), (side, child.source)
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for child in children.values():
        child.run()  # warm
    for i in range(rounds):
        names = list(sides)
        # In turn, never one twice in a row: its caches would still be warm from itself.
        for side in names[i % 3 :] + names[: i % 3]:
            taken[side].append(children[side].run())
    for child in children.values():
        child.close()
    return taken


def compare(taken: dict[str, list[dict[str, float]]], clock: str) -> dict[str, Any]:
    """Minima and medians in seconds, and their ratios to the old checkout's."""
    values = {side: [run[clock] for run in runs] for side, runs in taken.items()}
    out: dict[str, Any] = {}
    for name, of in (("min", min), ("median", statistics.median)):
        figures = {side: of(v) for side, v in values.items()}
        out[name] = figures | {
            "new/old": figures["new"] / figures["old"],
            "control/old": figures["control"] / figures["old"],
        }
    return out


def is_slower(row: dict[str, Any]) -> bool:
    cpu = row["cpu"]["min"]
    spread = max(cpu["control/old"], 1 / cpu["control/old"])
    return bool(cpu["new/old"] > max(spread, LOOSE))


def make_cut(work: Path) -> None:
    if not (work / "checkpoint").exists():
        command = [sys.executable, "-m", "gptoss_converters.cli", "new", "20b-shape", "--layers", "4"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "harmony", ROOT / "converters"))),
        }
        subprocess.run([*command, "-o", str(work / "checkpoint")], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gptoss-against"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "against.json")
    args = parser.parse_args()
    wanted = args.rows.split(",")
    if {"decode", "convert"} & set(wanted):
        make_cut(args.work)
    rows = []
    for row in wanted:
        rows.append(measure(row, args.old.resolve(), args.work, args.starts, args.rounds))
        cpu = rows[-1]["cpu"]
        print(
            f"{row}: new/old {cpu['min']['new/old']:.3f} (median {cpu['median']['new/old']:.3f}), "
            f"control {cpu['min']['control/old']:.3f} (median {cpu['median']['control/old']:.3f})"
            f"{'  SLOWER' if is_slower(rows[-1]) else ''}",
            flush=True,
        )
    commits = {name: commit(path) for name, path in (("old", args.old), ("new", ROOT))}
    found = {"commits": commits, "machine": machine(), "starts": args.starts, "rounds": args.rounds, "rows": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(args.work / "out", ignore_errors=True)
    sys.exit(any(map(is_slower, rows)))


def commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {
        "python": platform.python_version(),
        "cpu": model.partition(": ")[2],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
