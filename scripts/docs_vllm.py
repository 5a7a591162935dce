"""The table of vLLM's versions, made from tests/data/vllm_versions.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "tests" / "data" / "vllm_versions.json"


def vllm_versions_table() -> str:
    """A row for each version: which hooks fit, how many of the parser's tests passed, and what engines served."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    names = list(found[max(found, key=_number)]["hooks"])
    header = ["vLLM", *names, "parser's tests", "engines"]
    lines = [header, ["---"] * len(header)]
    for version in sorted(found, key=_number, reverse=True):
        one = found[version]
        hooks = ["yes" if one["hooks"].get(name, {}).get("in") else "no" for name in names]
        lines.append([version, *hooks, _say_tests(one), _say_engines(one)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _say_tests(found: dict[str, Any]) -> str:
    ran = found.get("parser_tests")
    if ran is None:
        return "not run"
    return f"{ran['passed']} of {ran['passed'] + len(ran['failed'])}"


def _say_engines(found: dict[str, Any]) -> str:
    ran = found.get("engines")
    if ran is None:
        return "not run"
    served = [kind for kind, run in ran.items() if "tokens" in run]
    return ", ".join(served) or "none"
