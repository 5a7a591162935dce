"""Kills conversions at random moments and resumes them; run by test_crash.py in a process of its own, because it forks.

python crash_driver.py FOLDER KILLS SEED        prints one JSON object
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf

from gptoss_adapters import spellings
from gptoss_adapters.checkpoint import layouts, open_checkpoint
from gptoss_adapters.checkpoint.writing import plan
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.spec import GptOssConfig
from helpers.crafted import GOLD, write_safetensors

CONFIG = GptOssConfig(
    num_hidden_layers=6,
    num_experts=32,
    vocab_size=512,
    hidden_size=512,
    intermediate_size=544,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=2,
)
plan.JOB_BYTES = 1 << 20
SPLIT = 25 << 20


def make_source(folder: Path) -> None:
    """About 90 MB of random weights."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, spec in layouts.stored("hf-mxfp4", CONFIG).items():
        n = int(np.prod(spec.shape))
        if name.endswith(("_blocks", "_scales")):
            data = rng.integers(0, 256 if name.endswith("_blocks") else 255, n, np.uint8)
        else:
            data = rng.integers(0x3C00, 0x3F80, n, np.uint16).view(np.uint8)
        tensors[name] = ("U8" if data.size == n else "BF16", list(spec.shape), data.tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(spellings.to_hf(CONFIG, mxfp4=True)))


def convert(source: Path, out: Path, hashed: bool, resume: bool, split: int | None = None) -> int:
    """Returns how many bytes an earlier run had written."""
    options = GgufOptions(tokenizer=str(GOLD / "src" / "tiny-mxfp4"), sha256=hashed, split_max_size=split)
    made = plan_gguf(open_checkpoint(source), out, options).plan
    return write(made, threads=2, resume=resume, commit_seconds=0.0).resumed


def killed_after(delay: float, source: Path, out: Path, hashed: bool) -> None:
    child = os.fork()
    if not child:
        convert(source, out, hashed, resume=False)
        os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def killed_at(system_call: str, number: int, source: Path, out: Path) -> bool:
    """A conversion to several files, killed by SIGKILL just before its `number`-th call of os.link or os.unlink;
    False if there is none.
    """
    child = os.fork()
    if not child:
        seen, call = 0, getattr(os, system_call)

        def counted(*args: Any, **options: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*args, **options)

        setattr(os, system_call, counted)
        convert(source, out, hashed=False, resume=False, split=SPLIT)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def between_names(source: Path, folder: Path) -> dict[str, int]:
    """Kills before and after each of several files gets its name. The first name comes last: until then there is no
    output.
    """
    folder.mkdir()
    out = folder / "out.gguf"
    convert(source, out, hashed=False, resume=False, split=SPLIT)
    wanted = {path.name: digest(path) for path in folder.iterdir()}
    first = min(wanted)
    seen = {"files": len(wanted), "killed between names": 0}
    for system_call in ("link", "unlink"):  # a file is linked to its name, then its temporary name is removed
        for number in range(1, len(wanted) + 1):
            for path in folder.iterdir():
                path.unlink()
            assert killed_at(system_call, number, source, out), "the conversion ended before it was killed"
            named = {path.name: digest(path) for path in folder.iterdir() if path.name in wanted}
            assert named.items() <= wanted.items(), "an incomplete file under its final name"
            assert (first in named) <= (named == wanted), "the first name stands without the others"
            seen["killed between names"] += 0 < len(named) < len(wanted)
            convert(source, out, hashed=False, resume=True, split=SPLIT)
            assert {path.name: digest(path) for path in folder.iterdir()} == wanted, "the resumed files differ"
    return seen


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    source, rng = folder / "source", random.Random(seed)
    make_source(source)
    wanted, lasts = {}, 0.0
    for hashed in (False, True):
        begin = time.monotonic()
        convert(source, folder / f"whole{hashed}.gguf", hashed, resume=False)
        lasts = max(lasts, time.monotonic() - begin)
        wanted[hashed] = digest(folder / f"whole{hashed}.gguf")
    out = folder / "out.gguf"
    seen = {"kills": 0, "nothing yet": 0, "unfinished": 0, "complete": 0, "resumed": 0, "resumed bytes": 0}
    few = kills // 10
    while seen["kills"] < kills or (
        min(seen["unfinished"], seen["resumed"]) < few and seen["kills"] < 4 * kills
    ):  # a busy machine moves the moments
        hashed = bool(seen["kills"] % 2)
        killed_after(rng.uniform(0, lasts), source, out, hashed)
        seen["kills"] += 1
        if out.exists():
            assert digest(out) == wanted[hashed], "an incomplete file under the final name"
            seen["complete"] += 1
            out.unlink()
        elif any(folder.glob(".out.gguf.part-*")):
            seen["unfinished"] += 1
        else:
            seen["nothing yet"] += 1
        before = convert(source, out, hashed, resume=True)
        seen["resumed"] += before > 0
        seen["resumed bytes"] += before
        assert digest(out) == wanted[hashed], "the resumed file differs"
        assert not any(folder.glob(".*part*")), "something was left behind"
        out.unlink()
    return seen | between_names(source, folder / "several")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
