"""Runs flows with the Python clients: `drive.py URL FLOWS.json PLAN.json`; one JSON line for each result.

The plan is a list of [client, flow, "whole" or "stream"]. Started by test_matrix.py with the Python of .venv-clients;
imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

MODULES = ("drive_openai", "drive_agents", "drive_langchain", "drive_litellm", "drive_pydantic", "drive_instructor")


def main(url: str, flows_path: str, plan_path: str) -> None:
    flows = json.loads(Path(flows_path).read_text())["flows"]
    plan = json.loads(Path(plan_path).read_text())
    for module in MODULES:
        clients = importlib.import_module(f"drivers.{module}").clients(url)
        for client, flow, way in plan:
            if client in clients:
                row = run(clients[client], flows[flow], way == "stream")
                print(json.dumps({"client": client, "flow": flow, "way": way, **row}), flush=True)


def run(ask: Any, flow: dict[str, Any], stream: bool) -> dict[str, Any]:
    try:
        got = ask(flow, stream)
        return dict(asyncio.run(got) if asyncio.iscoroutine(got) else got)
    except Exception:
        return {"error": traceback.format_exc(limit=-4)}


if __name__ == "__main__":
    main(*sys.argv[1:])
