"""Real client programs, each started in an empty HOME with nothing to reach but one server. Not a test module."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.documents import blocks
from helpers.serve_fakes import ROOT

_FOLDERS = ("programs", "more_programs")  # CI has the first one only
BINS = [ROOT / "tests" / "clients" / folder / "node_modules" / ".bin" for folder in _FOLDERS]
PATH = ":".join([*map(str, BINS), os.environ["PATH"]])
MODEL = "gpt-oss-20b"
RECIPES = ROOT / "recipes" / "serve"
ADDRESS = "http://127.0.0.1:8000/v1"  # the recipes'
SERVER = '["weather_server.py"]'
ONCE = "request_max_retries = 0\nstream_max_retries = 0\n"
NOWHERE = "http://127.0.0.1:9"  # the discard port: whatever asks the network is refused at once


def find(name: str) -> str:
    path = next((folder / name for folder in BINS if (folder / name).exists()), None)
    assert path, f"{name} is missing: `make clients` installs Codex and opencode, `make test-clients` the others"
    return str(path)


@dataclass(frozen=True)
class Program:
    """How a client is told of a server, and asked one question.

    door: end of the path it asks. configure writes its files into a HOME; arguments and environment are of one run.
    add_mcp tells it of the command of an MCP server named weather, and returns the arguments that this takes.
    """

    name: str
    door: str
    configure: Callable[[Path, str], None]
    arguments: Callable[[str], list[str]]
    environment: Callable[[str], dict[str, str]]
    add_mcp: Callable[[Path, list[str]], list[str]] | None = None

    def run(
        self, home: Path, work: Path, url: str, question: str, mcp: list[str] | None = None, seconds: float = 180
    ) -> Ended:
        """Ask `question` of the server at `url` (ends with /v1), from the folder `work`; mcp: a server's command."""
        home.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        self.configure(home, url)
        more = self.add_mcp(home, mcp) if mcp and self.add_mcp else []
        environment = {
            "PATH": PATH,
            "HOME": str(home),
            "TERM": "dumb",
            "NO_COLOR": "1",
            "CI": "1",
            "HTTPS_PROXY": NOWHERE,
            "HTTP_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1,localhost",
            **self.environment(url),
        }
        try:
            done = subprocess.run(
                [find(self.name), *self.arguments(question), *more],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        finally:
            _end_daemon(home)
        return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


def _end_daemon(home: Path) -> None:
    """Cline leaves a process behind, whose number it writes into its HOME."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        hub = json.loads((home / ".cline" / "data" / "locks" / "hub" / "production.json").read_text())
        os.kill(hub["pid"], signal.SIGTERM)


def _nothing(_: str) -> dict[str, str]:
    return {}


def _codex(home: Path, url: str) -> None:
    """As the recipe has it; tries nothing twice, and tells nobody."""
    folder = home / ".codex"
    folder.mkdir(exist_ok=True)
    recipe = blocks(RECIPES / "codex.md", "toml")[0].replace(ADDRESS, url)
    (folder / "config.toml").write_text(f"{recipe}{ONCE}[analytics]\nenabled = false\n")


def _codex_mcp(home: Path, command: list[str]) -> list[str]:
    """A list of strings is the same in JSON and in TOML."""
    recipe = blocks(RECIPES / "codex.md", "toml")[1]
    recipe = recipe.replace('"python3"', json.dumps(command[0])).replace(SERVER, json.dumps(command[1:]))
    with (home / ".codex" / "config.toml").open("a") as config:
        config.write(recipe)
    return []


def _opencode(home: Path, url: str) -> None:
    """As the recipe has it; no update, nothing shared."""
    recipe = json.loads(blocks(RECIPES / "opencode.md", "json")[0].replace(ADDRESS, url))
    add_opencode(home, {"autoupdate": False, "share": "disabled", **recipe})


def _opencode_mcp(home: Path, command: list[str]) -> list[str]:
    recipe = json.loads(blocks(RECIPES / "opencode.md", "json")[1])
    recipe["mcp"]["weather"]["command"] = command
    add_opencode(home, recipe)
    return []


def add_opencode(home: Path, more: dict[str, Any]) -> None:
    """Into its configuration, before it is started or by the way."""
    _merge(home / ".config" / "opencode" / "opencode.json", more)


def _merge(path: Path, more: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | more))


def _cline(home: Path, url: str) -> None:
    """Its own command writes its settings."""
    subprocess.run(
        [find("cline"), "auth", "-p", "openai-compatible", "-k", "none", "-m", MODEL, "-b", url],
        env={"PATH": PATH, "HOME": str(home), "HTTPS_PROXY": NOWHERE, "CI": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def _qwen(home: Path, url: str) -> None:
    settings = {
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
        "telemetry": {"enabled": False},
        "security": {"auth": {"selectedType": "openai"}},
    }
    _merge(home / ".qwen" / "settings.json", settings)


def _qwen_mcp(home: Path, command: list[str]) -> list[str]:
    server = {"command": command[0], "args": command[1:], "trust": True}
    _merge(home / ".qwen" / "settings.json", {"mcpServers": {"weather": server}})
    return []


def _claude(home: Path, url: str) -> None:
    """Everything is said in the environment."""


def _claude_mcp(home: Path, command: list[str]) -> list[str]:
    path = home / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"weather": {"command": command[0], "args": command[1:]}}}))
    return ["--mcp-config", str(path), "--strict-mcp-config"]


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "codex",
            "/responses",
            _codex,
            lambda question: [
                "exec",
                "--skip-git-repo-check",
                "--dangerously-bypass-approvals-and-sandbox",
                "--color=never",
                question,
            ],
            _nothing,
            _codex_mcp,
        ),
        Program(
            "opencode",
            "/chat/completions",
            _opencode,
            lambda question: ["run", "--model", f"gptoss/{MODEL}", "--auto", question],
            lambda _: {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
            _opencode_mcp,
        ),
        Program(
            "cline",
            "/chat/completions",
            _cline,
            lambda question: ["-P", "openai-compatible", "-m", MODEL, "--json", "--retries", "1", question],
            _nothing,
        ),
        Program(
            "qwen",
            "/chat/completions",
            _qwen,
            lambda question: ["--yolo", "--auth-type", "openai", "-p", question],
            lambda url: {
                "OPENAI_BASE_URL": url,
                "OPENAI_API_KEY": "none",
                "OPENAI_MODEL": MODEL,
                "HTTPS_PROXY": "",  # it would send what is meant for this machine there too
                "HTTP_PROXY": "",
            },
            _qwen_mcp,
        ),
        Program(
            "claude",
            "/messages",
            _claude,
            lambda question: ["-p", question, "--model", MODEL, "--allowedTools", "Bash,Edit,Write,Read,mcp__weather"],
            lambda url: {
                "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
                "ANTHROPIC_API_KEY": "none",
                "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_TELEMETRY": "1",
                "DISABLE_AUTOUPDATER": "1",
            },
            _claude_mcp,
        ),
    )
}
