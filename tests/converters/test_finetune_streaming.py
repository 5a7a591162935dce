"""A bf16 fine-tune of the 120b (234 GB) becomes MXFP4 on a 16 GB machine: the whole by plan, the memory on a
true-shape cut.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new

# bytes of anonymous memory; four threads with an expert of 120b each (33 MB, and its transposed copy)
LIMIT = 1_000_000_000


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gptoss_converters.cli", *map(str, arguments)]


def peak_anonymous(command: list[str]) -> tuple[int, str]:
    """Runs it to the end: the most bytes of anonymous memory that it had, and what it printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:  # a pipe would fill up
        child, peak = subprocess.Popen(command, stdout=out, stderr=error), 0
        while child.poll() is None:
            try:
                status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
                peak = max(peak, int(status["RssAnon"].split()[0]) * 1024)
            except (OSError, KeyError):
                pass
            time.sleep(0.01)
        out.seek(0), error.seek(0)
        assert child.returncode == 0, error.read()
        return peak, out.read()


def test_the_whole_120b_fine_tune_is_planned(tmp_path: Path) -> None:
    """234 GB of bf16 as sparse files; the headers are real."""
    for file in plan_new("120b-shape", tmp_path / "c", kind="hf-bf16").files:
        with file.path.open("wb") as f:
            f.write(file.header)
            if file.tensors:
                f.truncate(file.size)
    peak, out = peak_anonymous(
        program("to-hf", tmp_path / "c", "-o", tmp_path / "o", "--tokenizer", "none", "--dry-run", "--json")
    )
    plan = json.loads(out)
    names = [t["name"] for t in plan["tensors"]]
    assert len(names) == len(set(names)) == 687 and len(plan["quantised"]) == 72
    assert sum(t["nbytes"] for t in plan["tensors"]) == 65_248_815_744  # the published checkpoint's
    assert sum(f.stat().st_size for f in (tmp_path / "c").glob("*.safetensors")) > 233_658_313_344
    assert peak < LIMIT and not (tmp_path / "o").exists()


@pytest.mark.slow
def test_memory_on_a_true_shape_cut(tmp_path: Path) -> None:
    """One layer of the 20b shape, whose experts have the size of the 120b's: dequantised, and back to every byte."""
    subprocess.run(program("new", "20b-shape", "--layers", 1, "-o", tmp_path / "m"), check=True, capture_output=True)
    peaks = {}
    peaks["mxfp4 to bf16"], _ = peak_anonymous(
        program("to-hf", tmp_path / "m", "-o", tmp_path / "d", "--experts", "bf16", "--tokenizer", "none")
    )
    peaks["bf16 to mxfp4"], out = peak_anonymous(
        program("to-hf", tmp_path / "d", "-o", tmp_path / "b", "--tokenizer", "none", "--json")
    )
    print(peaks, json.loads(out)["seconds"])
    assert max(peaks.values()) < LIMIT, peaks
    assert compare(open_checkpoint(tmp_path / "m"), open_checkpoint(tmp_path / "b")).counts["BYTES EQUAL"] == 20
