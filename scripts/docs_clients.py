"""The table of docs/clients.md, made from what the client matrix of tests/clients runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "tests" / "clients"


def clients_table() -> str:
    """A line for each client: version, API, how many flows (each whole and streamed), and what it does otherwise."""
    flows = json.loads((FOLDER / "flows.json").read_text())["flows"]
    versions = read_versions()
    lines = ["| client | package | API | flows | otherwise |", "| --- | --- | --- | ---: | --- |"]
    for name, about in json.loads((FOLDER / "clients.json").read_text()).items():
        asked = [flow for flow in about.get("only", flows) if offers(flows[flow], name, about["api"])]
        count = len(asked) - len(about.get("leaves_out", {}))
        index = "npm " if about["language"] == "JavaScript" else ""
        package = f"{index}`{about['package']}` {versions[about['package'], about['language']]}"
        lines.append(f"| {name} | {package} | {about['api']} | {count} | {describe(about)} |")
    return "\n".join(lines)


def offers(flow: dict[str, Any], client: str, api: str) -> bool:
    family = client.split()[0]
    return api in flow.get("apis", [api]) and family in flow.get("families", [family])


def read_versions() -> dict[tuple[str, str], str]:
    """(package, language) -> version."""
    python = re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)", (FOLDER / "requirements.txt").read_text(), re.MULTILINE)
    javascript = json.loads((FOLDER / "node" / "package.json").read_text())["dependencies"]
    return {
        **{(name, "Python"): version for name, version in python},
        **{(name, "JavaScript"): version for name, version in javascript.items()},
    }


def describe(about: dict[str, Any]) -> str:
    """The reasons, each with the flows that it is about."""
    flows: dict[str, list[str]] = {}
    for flow, why in about.get("leaves_out", {}).items():
        flows.setdefault(why, []).append(flow)
    for flow, other in about.get("otherwise", {}).items():
        ways = "" if "ways" not in other else " (streamed)" if other["ways"] == ["stream"] else " (whole)"
        flows.setdefault(other["why"], []).append(flow + ways)
    said = [f"{', '.join(names)}: {why}" for why, names in flows.items()]
    return "; ".join([*([about["why"]] if "why" in about else []), *said])
