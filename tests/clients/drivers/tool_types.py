"""The tools of the Responses API that are no functions: how they are declared, and what a client answers to a call."""

from __future__ import annotations

from typing import Any

from drivers.tools import TOOLS, WEATHER, Calls

DECLARED: dict[str, dict[str, Any]] = {
    "custom": {"type": "custom", "name": "run_sql", "description": "Runs SQL."},
    "namespace": {
        "type": "namespace",
        "name": "mcp__weather",
        "description": "A weather server.",
        "tools": [
            {"type": "function", "name": "get_weather", "description": "Weather of a city.", "parameters": WEATHER}
        ],
    },
    "local_shell": {"type": "local_shell"},
    "shell": {"type": "shell"},
    "apply_patch": {"type": "apply_patch"},
}
RESULTS = {"custom": "3 rows", "local_shell": "two files", "shell": "two files", "apply_patch": "done"}


def declare(tools: Any) -> list[dict[str, Any]]:
    """A flow's `tools`: true for the two functions, else the type."""
    if tools is not True:
        return [DECLARED[tools]]
    return [
        {"type": "function", "name": name, "description": description, "parameters": parameters, "strict": False}
        for name, (description, parameters) in TOOLS.items()
    ]


def answer_call(item: Any, calls: Calls) -> dict[str, Any]:
    """The item that answers a call, which is noted."""
    kind = item.type.removesuffix("_call")
    output: Any = RESULTS.get(kind.removesuffix("_tool"))
    if kind == "function":
        output = calls.run(item.name, item.arguments)
        if item.namespace:
            calls[-1] = (f"{item.namespace}.{item.name}", calls[-1][1])
    elif kind == "custom_tool":
        calls.append((item.name, item.input))
    elif kind == "local_shell":
        calls.append((kind, item.action.command))
        return {"type": "local_shell_call_output", "id": item.call_id, "call_id": item.call_id, "output": output}
    elif kind == "shell":
        calls.append((kind, item.action.commands))
        output = [{"stdout": output, "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]
    elif kind == "apply_patch":
        calls.append((kind, item.operation.to_dict()))
        return {"type": "apply_patch_call_output", "call_id": item.call_id, "status": "completed", "output": output}
    return {"type": f"{item.type}_output", "call_id": item.call_id, "output": output}
