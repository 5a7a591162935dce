"""vLLM's default binds OpenMP's threads to one core each: the kernels' own threads must not all end up on the first of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CHILD = """
import json, os
from gptoss_adapters.vllm_plugin.experts import spread_kernel_threads
def cores():
    return sorted(sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task"))
before = cores()
spread_kernel_threads()
print("RESULT", json.dumps([sorted(os.sched_getaffinity(0)), before, cores()]))
"""


@pytest.mark.backend("vllm")
def test_kernel_threads_get_all_of_vllms_cores() -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    assert len(two) == 2, "a machine with two cores is needed"
    environment = os.environ | {"GOMP_CPU_AFFINITY": f"{two[0]} {two[1]}", "OMP_NUM_THREADS": "2", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, timeout=200)
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT")] or [done.stderr]
    main, before, after = json.loads(line.removeprefix("RESULT "))
    assert main == [two[0]]  # vLLM's binding is as it was
    assert after.count(two) == before.count(two) + 1, (before, after)  # one more thread, free on both cores
