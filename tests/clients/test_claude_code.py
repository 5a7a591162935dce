"""recipes/serve/claude_code.md with the real program: its shell lines, a call that it executes, the result used."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from helpers.client_programs import NOWHERE, PATH
from helpers.documents import ROOT, blocks
from helpers.serve_fakes import Served
from helpers.tool_answers import to_ids

CALL = (
    "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.Bash<|message|>"
    '{"command": "echo $((40 + 2)) > made.txt; cat made.txt", "description": "Make a file"}<|call|>'
)
ANSWER = "<|channel|>final<|message|>It says 42.<|return|>"


def test_the_recipe_executes_a_call(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text("".join(f"{json.dumps(to_ids(text))}\n" for text in (CALL, ANSWER)))
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    lines = blocks(ROOT / "recipes" / "serve" / "claude_code.md", "bash")[1]
    with Served(f"helpers.serve_fakes:Scripted={script}", tmp_path, "--model", "gpt-oss-20b") as server:
        door = server.url.removesuffix("/v1")
        environment = {
            "PATH": PATH,
            "HOME": str(home),
            "HTTPS_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            ["bash", "-ec", lines.replace("http://127.0.0.1:8000", door)],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        asked = [line for line in server.lines() if line.get("route") == "POST /v1/messages"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "It says 42."
    assert (work / "made.txt").read_text() == "42\n"
    assert [line["status"] for line in asked] == [200, 200]
