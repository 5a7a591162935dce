"""Every client, every flow, whole and streamed, as flows.json and clients.json have them, over an engine with a script.

One server for all, and one process for the clients of each language.

A flow may be for some `apis` or some `families` of clients (the first words of their names) only. A client of
clients.json may have: `only` (its flows, with `why`), `leaves_out` (flows that it cannot ask for), `hides` (what its
results do not show) and `otherwise` (flows that end otherwise, in both ways or in `ways`): each with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.serve_fakes import ROOT, Served

HERE = Path(__file__).parent
FLOWS = HERE / "flows.json"
FLOW_TABLE: dict[str, dict[str, Any]] = json.loads(FLOWS.read_text())["flows"]
CLIENTS: dict[str, dict[str, Any]] = json.loads((HERE / "clients.json").read_text())
WAYS = ("whole", "stream")


def offers(flow: dict[str, Any], client: str) -> bool:
    api = CLIENTS[client]["api"]
    return api in flow.get("apis", [api]) and client.split()[0] in flow.get("families", [client.split()[0]])


PLAN = [
    (client, flow, way)
    for client, about in CLIENTS.items()
    for flow in about.get("only", FLOW_TABLE)
    if flow not in about.get("leaves_out", {}) and offers(FLOW_TABLE[flow], client)
    for way in WAYS
]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE_PACKAGES = HERE / "node" / "node_modules"


def find_difference(client: str, flow: str, way: str) -> dict[str, Any]:
    """The entry of `otherwise` for a row; empty if it ends as the flow says."""
    found: dict[str, Any] = CLIENTS[client].get("otherwise", {}).get(flow, {})
    return found if way in found.get("ways", WAYS) else {}


def run_clients(command: list[str | Path], url: str, folder: Path) -> list[dict[str, Any]]:
    plan = folder / "plan.json"
    plan.write_text(json.dumps(PLAN))
    done = subprocess.run(
        [*command, url, FLOWS, plan],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What each row came to. One process at a time: CI has two cores, and the server needs one."""
    assert PYTHON.exists() and NODE_PACKAGES.exists(), "the clients are missing: `make clients` installs them"
    node = shutil.which("node")
    assert node, "Node is missing (20 or newer)"
    folder = tmp_path_factory.mktemp("matrix")
    with Served(f"helpers.question_engine:ByQuestion={FLOWS}", folder, "--model", "gpt-oss-20b") as server:
        rows = run_clients([PYTHON, HERE / "drive.py"], server.url, folder)
        rows += run_clients([node, HERE / "drive.mjs"], server.url, folder)
    return {(row["client"], row["flow"], row["way"]): row for row in rows}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("client", "flow", "way"), PLAN, ids=[" ".join(row) for row in PLAN])
def test_a_flow(results: dict[tuple[str, str, str], dict[str, Any]], client: str, flow: str, way: str) -> None:
    row = results[client, flow, way]
    difference = find_difference(client, flow, way)
    expected = FLOW_TABLE[flow]["expects"] | difference.get("expects", {})
    compare(row, expected, CLIENTS[client].get("hides", {}))


def compare(row: dict[str, Any], expected: dict[str, Any], hidden: dict[str, str]) -> None:
    if "error" in expected:
        assert expected["error"] in row.get("error", "none was raised")
        return
    assert "error" not in row, row["error"]
    # Calls of one step may run in any order.
    calls, wanted = (sorted(json.dumps(call, sort_keys=True) for call in of.get("calls", [])) for of in (row, expected))
    assert calls == wanted
    for what in expected.keys() - hidden.keys() - {"calls", "begins", "contains"}:
        assert row[what] == expected[what], what
    assert expected.get("contains", "") in (row.get("text") or "")
    if "begins" in expected:
        assert row["text"].startswith(expected["begins"]) and "twenty-four" not in row["text"]


def test_the_table_is_whole() -> None:
    """At least 150 rows; what is otherwise, left out or hidden has a reason and is in the other table."""
    assert len(PLAN) >= 150
    for client, about in CLIENTS.items():
        reasons = about.get("leaves_out", {}) | {flow: of["why"] for flow, of in about.get("otherwise", {}).items()}
        assert reasons.keys() <= FLOW_TABLE.keys() and set(about.get("only", [])) <= FLOW_TABLE.keys(), client
        assert all(len(reason) > 10 for reason in [*reasons.values(), *about.get("hides", {}).values()]), client
        assert "only" not in about or len(about["why"]) > 10, client
