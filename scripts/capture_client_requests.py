"""The first request of each real client program, written to tests/data/clients.

python scripts/capture_client_requests.py [PROGRAM...]

Needs what `make test-clients` installs. Fields and types stay as the program sends them. Every long text is
replaced by text of ours of equal length, and what names a machine, a path, a moment or a session by something fixed: no
program's prompt and nothing personal is kept.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from helpers.client_programs import PROGRAMS, find  # noqa: E402
from helpers.logging_proxy import Asked, LoggingProxy  # noqa: E402

QUESTION = "What is the weather in Paris?"
LONG = 60
OWN = "Text of our own stands here in place of the program's, and has as many characters. "
WORDS_OF_THE_API = {
    "type",
    "role",
    "name",
    "format",
    "pattern",
    "$schema",
    "$ref",
    "model",
    "required",
    "enum",
    "const",
}
HEADERS = ("accept", "content-type", "anthropic-version", "anthropic-beta", "x-api-key", "authorization")
FIXED = [
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "00000000-0000-4000-8000-000000000000"),
    (r"(?<![0-9a-zA-Z])[0-9a-f]{32,}", "0" * 64),
    (r"(?<![\w-])\d{12,}(?![\w-])", "1700000000000"),
    (r"/(?:tmp|home|root)/[^\s\"'<]*", "/work"),
    (r"\d{4}-\d\d-\d\d", "2025-08-05"),
]


def own_text(length: int) -> str:
    return (OWN * (length // len(OWN) + 1))[:length]


def cleaned(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: cleaned(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [cleaned(v, key) for v in value]
    if not isinstance(value, str) or QUESTION in value:
        return value
    if value.startswith("{") and (inner := _json(value)) is not None:
        return json.dumps(cleaned(inner))
    if len(value) > LONG and key not in WORDS_OF_THE_API and not re.fullmatch(r"[\w:.-]+", value):
        return own_text(len(value))
    for pattern, fixed in FIXED:
        value = re.sub(pattern, fixed, value)
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def first_request(name: str) -> Asked:
    """The first one with tools: some programs ask for a title of the conversation before that."""
    program = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as folder, LoggingProxy() as proxy:
        program.run(Path(folder, "home"), Path(folder, "work"), proxy.url, QUESTION)
        return next(asked for asked in proxy.posts(program.door) if asked.body.get("tools"))


def main(*names: str) -> None:
    for name in names or PROGRAMS:
        asked = first_request(name)
        said = subprocess.run([find(name), "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"\d+\.\d+\.\d+", said)
        record = {
            "program": name,
            "version": version[0] if version else said.strip(),
            "path": asked.path,
            "headers": {header: asked.headers[header] for header in HEADERS if header in asked.headers},
            "body": cleaned(asked.body),
        }
        path = ROOT / "tests" / "data" / "clients" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.relative_to(ROOT)}: {len(json.dumps(asked.body))} -> {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
