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

from helpers.serve_fakes import ROOT

BIN = ROOT / "tests" / "clients" / "programs" / "node_modules" / ".bin"
MODEL = "gpt-oss-20b"
NOWHERE = "http://127.0.0.1:9"  # the discard port: whatever asks the network is refused at once


@dataclass(frozen=True)
class Program:
    """How a client is told of a server, and asked one question.

    door: end of the path it asks. configure writes its files into a HOME; arguments and environment are of one run.
    """

    name: str
    door: str
    configure: Callable[[Path, str], None]
    arguments: Callable[[str], list[str]]
    environment: Callable[[str], dict[str, str]]

    def run(self, home: Path, work: Path, url: str, question: str, seconds: float = 180) -> Ended:
        """Ask `question` of the server at `url` (ends with /v1), from the folder `work`."""
        home.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        self.configure(home, url)
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
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
                [str(BIN / self.name), *self.arguments(question)],
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
    folder = home / ".codex"
    folder.mkdir(exist_ok=True)
    text = f"""model = "{MODEL}"
model_provider = "local"
[analytics]
enabled = false
[model_providers.local]
name = "local"
base_url = "{url}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
    (folder / "config.toml").write_text(text)


def _opencode(home: Path, url: str) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "local",
        "options": {"baseURL": url, "apiKey": "none"},
        "models": {MODEL: {"name": MODEL}},
    }
    config = {
        "autoupdate": False,
        "share": "disabled",
        "provider": {"local": provider},
        "small_model": f"local/{MODEL}",
    }
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "opencode.json").write_text(json.dumps(config))


def _cline(home: Path, url: str) -> None:
    """Its own command writes its settings."""
    subprocess.run(
        [str(BIN / "cline"), "auth", "-p", "openai-compatible", "-k", "none", "-m", MODEL, "-b", url],
        env={"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(home), "HTTPS_PROXY": NOWHERE, "CI": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


def _qwen(home: Path, url: str) -> None:
    folder = home / ".qwen"
    folder.mkdir(exist_ok=True)
    settings = {
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
        "telemetry": {"enabled": False},
        "security": {"auth": {"selectedType": "openai"}},
    }
    (folder / "settings.json").write_text(json.dumps(settings))


def _claude(home: Path, url: str) -> None:
    """Everything is said in the environment."""


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
        ),
        Program(
            "opencode",
            "/chat/completions",
            _opencode,
            lambda question: ["run", "--model", f"local/{MODEL}", "--auto", question],
            lambda _: {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
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
        ),
        Program(
            "claude",
            "/messages",
            _claude,
            lambda question: ["-p", question, "--model", MODEL, "--allowedTools", "Bash,Edit,Write,Read"],
            lambda url: {
                "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
                "ANTHROPIC_API_KEY": "none",
                "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_TELEMETRY": "1",
                "DISABLE_AUTOUPDATER": "1",
            },
        ),
    )
}
