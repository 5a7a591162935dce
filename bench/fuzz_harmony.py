"""Differential fuzz against the installed openai_harmony: any difference ends the run with its seed.

    python bench/fuzz_harmony.py --conversations 5000 --schemas 5000 [--seed 0]

The checks are those of tests/harmony/test_differential.py, which runs a few of them every time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "harmony"), str(ROOT / "harmony")]

from test_differential import check_conversation, check_schema  # noqa: E402

CHECKS: dict[str, Callable[[int], None]] = {"conversations": check_conversation, "schemas": check_schema}
"""Option name -> check of one seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CHECKS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help="how many random cases")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first case")
    options = parser.parse_args()
    for name, check in CHECKS.items():
        count, begin = getattr(options, name), time.perf_counter()
        for seed in range(options.seed, options.seed + count):
            check(seed)
        print(f"{name}: {count} cases, 0 differences, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
