"""Runs flows with the Python clients: `drive.py URL FLOWS.json PLAN.json`; one JSON line for each result.

The plan is a list of [client, flow, "whole" or "stream"]. Started by test_client_matrix.py with the Python of
.venv-clients; imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

# By the first word of a client's name.
MODULES = {
    "openai": "drive_openai",
    "agents": "drive_agents",
    "langchain": "drive_langchain",
    "litellm": "drive_litellm",
    "pydantic-ai": "drive_pydantic",
    "instructor": "drive_instructor",
    "anthropic": "drive_anthropic",
}


def main(url: str, flows_path: str, plan_path: str) -> None:
    flows = json.loads(Path(flows_path).read_text())["flows"]
    plan = json.loads(Path(plan_path).read_text())
    for word, module in MODULES.items():
        if not any(client.split()[0] == word for client, _, _ in plan):
            continue
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
