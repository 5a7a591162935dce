"""The test suite in parts, two at a time, with the time that each took; fails if any part failed or ran nothing.

python scripts/run_tests.py CORE_BIN VLLM_BIN [PART...]

A part is one pytest with one thread for arithmetic, so that two of them fill two cores. The longest begin first. vLLM's
pins need an environment of their own. conftest.py turns an engine's skipped tests into failures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AT_ONCE = 2
APART = ("clients", "harmony", "parity", "serve", "vllm_plugin")
PARTS = {
    "vllm": ["tests/vllm_plugin"],
    "parity": ["tests/parity"],
    "core": ["tests", *(f"--ignore=tests/{folder}" for folder in APART)],
    "serve": ["tests/serve"],
    "clients": ["tests/clients"],
    "harmony": ["tests/harmony"],
}


def run_part(name: str, bin_folder: Path) -> tuple[int, float]:
    """(exit status, seconds). Says what pytest said when it has ended, as two parts at once cannot share a terminal."""
    print(f"{name}: begins", flush=True)
    begin = time.monotonic()
    command = [bin_folder / "pytest", "-q", "-m", "not slow", "-o", f"cache_dir=.pytest_cache/{name}", *PARTS[name]]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    seconds = time.monotonic() - begin
    said = done.stdout.decode(errors="replace")
    print(f"\n===== {name}: status {done.returncode} after {seconds:.0f} s\n{said}", flush=True)
    return done.returncode, seconds


def main(core: str, vllm: str, *names: str) -> int:
    wanted = names or tuple(PARTS)
    folders = [Path(vllm if name == "vllm" else core) for name in wanted]
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(run_part, wanted, folders))
    print("spend per part:")
    for name, (status, seconds) in zip(wanted, results, strict=True):
        print(f"  {name} {seconds:.0f} s{'' if status == 0 else ' FAILED'}")
    print(f"  all {time.monotonic() - begin:.0f} s")
    return int(any(status for status, _ in results))  # 5, nothing ran, is a failure too


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
