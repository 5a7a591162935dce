"""Differential fuzz against the installed openai_harmony: any difference ends the run with its seed.

    python bench/fuzz_harmony.py --conversations 5000 --schemas 5000 --streams 20000 --tolerant 200000 [--seed 0]

The checks are those of tests/harmony/rendering/test_differential.py and test_parser_fuzz.py, which run a few of them
every time: `streams` compares every attribute of the strict parser after every token, `tolerant` feeds the tolerant
parser in three ways, `text` the same as text.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _paths
from helpers.stream_checks import check_strict, check_text, check_tolerant
from test_differential import check_conversation, check_schema

CHECKS: dict[str, Callable[[int], None]] = {
    "conversations": check_conversation,
    "schemas": check_schema,
    "streams": check_strict,
    "tolerant": check_tolerant,
    "text": check_text,
}
"""Option name -> check of one seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CHECKS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help="how many random cases")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first case")
    parser.add_argument("--out", type=Path, default=_paths.RESULTS / "fuzz_harmony.json", help="counts are added here")
    options = parser.parse_args()
    for name, check in CHECKS.items():
        count, begin = getattr(options, name), time.perf_counter()
        if not count:
            continue
        for seed in range(options.seed, options.seed + count):
            check(seed)
        seconds = round(time.perf_counter() - begin)
        print(f"{name}: {count} cases, 0 differences, {seconds} s")
        _record(options.out, name, {"cases": count, "first_seed": options.seed, "differences": 0, "seconds": seconds})


def _record(path: Path, name: str, result: dict[str, Any]) -> None:
    versions = {"python": platform.python_version(), "openai-harmony": version("openai-harmony")}
    report = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report, name: {**result, **versions}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
