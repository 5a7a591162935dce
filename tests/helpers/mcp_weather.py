"""A small real MCP server over standard input and output, for clients that start one. Nothing but Python.

python mcp_weather.py [TOOL] [LOG]

It has one tool, TOOL (get_weather), which says that it is sunny; LOG gets a line with the arguments of every call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NO_METHOD = -32601


def answer(method: str, given: dict[str, Any], name: str, log: str | None) -> dict[str, Any] | None:
    """The result of a request; None for a method that this server does not have."""
    if method == "initialize":
        about = {"name": "weather", "version": "1.0"}
        return {"protocolVersion": given["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "ping":
        return {}
    if method == "tools/list":
        city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        return {"tools": [{"name": name, "description": "Get the weather for a city.", "inputSchema": city}]}
    if method == "tools/call" and given.get("name") == name:
        if log is not None:
            with Path(log).open("a") as lines:
                lines.write(json.dumps(given.get("arguments")) + "\n")
        said = json.dumps({"temperature": 21, "condition": "sunny"})
        return {"content": [{"type": "text", "text": said}], "isError": False}
    return None


def main(name: str = "get_weather", log: str | None = None) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue  # a notification
        reply = {"jsonrpc": "2.0", "id": asked["id"]}
        result = answer(asked["method"], asked.get("params") or {}, name, log)
        error = {"code": NO_METHOD, "message": f"no {asked['method']} here"}
        print(json.dumps(reply | ({"error": error} if result is None else {"result": result})), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
