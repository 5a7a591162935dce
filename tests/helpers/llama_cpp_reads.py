"""What llama.cpp says of a GGUF file."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ORACLE = """
import os, sys
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.warmup, p.cpuparams.n_threads = sys.argv[1], 64, 1, False, 1
try:
    server = xllamacpp.Server(p)  # kept: its destructor may hang
except BaseException:
    os._exit(77)
os._exit(0)
"""


def llama_cpp_says(paths: list[Path]) -> list[str]:
    """Per file: "accepts", "rejects" or "aborts"; a process each, since llama.cpp aborts on some."""

    def ask(path: Path) -> str:
        code = subprocess.run(
            [sys.executable, "-c", ORACLE, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60
        ).returncode
        return {0: "accepts", 77: "rejects"}.get(code, "aborts")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ask, paths))
