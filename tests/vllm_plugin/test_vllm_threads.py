"""In vLLM's process the kernels run on the OpenMP threads that its other operations use, however those are bound to
cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CHILD = """
import json, os
import numpy as np, torch
from gptoss_adapters import mxfp4
from gptoss_adapters.kernels.library import library, use_openmp
import gptoss_adapters.vllm_plugin.experts
def threads():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
x, w = np.ones((1, 1024), np.float32), (np.arange(4096 * 1024) % 16256).astype(np.uint16).reshape(4096, 1024)
torch.ones(1 << 20).add_(1)
counts, used = [threads()], use_openmp()
shared = mxfp4.linear_bf16(x, w, threads=2)
counts.append(threads())
library().use_openmp(None)
own = mxfp4.linear_bf16(x, w, threads=2)
counts.append(threads())
print("RESULT", json.dumps([used, bool((own == shared).all()), sorted(os.sched_getaffinity(0)), counts]))
"""


@pytest.mark.backend("vllm")
def test_kernels_run_on_openmps_threads() -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    assert len(two) == 2, "a machine with two cores is needed"
    environment = os.environ | {
        "GOMP_CPU_AFFINITY": f"{two[0]} {two[1]}",
        "OMP_NUM_THREADS": "2",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=200)
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT")] or [done.stderr]
    used, equal, main, (before, shared, own) = json.loads(line.removeprefix("RESULT "))
    assert used and equal
    assert main == [two[0]]  # vLLM's binding is as it was
    assert shared == before and own == before + 1, (
        before,
        shared,
        own,
    )  # no thread of their own until they are told so
