"""Real programs: each runs the tool that the model asks for, and its result is used. No network, an empty HOME."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.client_programs import PROGRAMS
from helpers.logging_proxy import LoggingProxy
from helpers.serve_fakes import ROOT, TESTS, Served

SHELL = "printf 'apricot\\n' > word.txt && cat word.txt"
PATCH = "*** Begin Patch\n*** Add File: word.txt\n+apricot\n*** End Patch\n"
ANSWERED = "The tool answered: "
PARIS = {"city": "Paris"}
SUNNY = ("sunny", "21")


@dataclass(frozen=True)
class Case:
    """One call of a program's own tool. {work} in its arguments is the folder that the program runs in.

    After a call of kind shell, file or patch, word.txt there holds `apricot`; `mcp` goes to mcp_weather.py.
    shown: words of the tool's result, which the model's answer has after the result has come back to it.
    """

    program: str
    kind: str
    recipient: str
    arguments: dict[str, Any]
    shown: tuple[str, ...] = ("word.txt",)

    @property
    def name(self) -> str:
        return f"{self.program}-{self.kind}"

    @property
    def question(self) -> str:
        return f"Use a tool for the word of {self.name}."


CASES = [
    Case("codex", "shell", "functions.exec_command", {"cmd": SHELL}, ("exited with code 0", "apricot")),
    Case("codex", "patch", "functions.exec_command", {"cmd": f"apply_patch <<'EOF'\n{PATCH}EOF"}),
    Case("codex", "mcp", "mcp__weather.get_weather", PARIS, SUNNY),
    Case("opencode", "shell", "functions.bash", {"command": SHELL, "description": "Writes a word"}, ("apricot",)),
    Case("opencode", "file", "functions.write", {"filePath": "{work}/word.txt", "content": "apricot\n"}, ()),
    Case("opencode", "mcp", "functions.weather_get_weather", PARIS, SUNNY),
    Case("qwen", "shell", "functions.run_shell_command", {"command": SHELL, "is_background": False}, ("apricot",)),
    Case("qwen", "file", "functions.write_file", {"file_path": "{work}/word.txt", "content": "apricot\n"}),
    Case("qwen", "mcp", "functions.mcp__weather__get_weather", PARIS, SUNNY),
    Case("cline", "shell", "functions.run_commands", {"commands": [SHELL]}, ("apricot",)),
    Case("cline", "patch", "functions.apply_patch", {"input": PATCH}),
    Case("claude", "shell", "functions.Bash", {"command": SHELL, "description": "Writes a word"}, ("apricot",)),
    Case("claude", "file", "functions.Write", {"file_path": "{work}/word.txt", "content": "apricot\n"}),
    Case("claude", "mcp", "functions.mcp__weather__get_weather", PARIS, SUNNY),
]


@dataclass(frozen=True)
class Setting:
    folder: Path
    proxy: LoggingProxy


def mark(case: Case) -> Any:
    """Codex and opencode run in CI."""
    marks = [] if case.program in ("codex", "opencode") else [pytest.mark.slow]
    return pytest.param(case, id=case.name, marks=marks)


def outputs(case: Case, work: Path) -> dict[str, Any]:
    call = json.dumps(case.arguments).replace("{work}", str(work))
    first = (
        "<|channel|>analysis<|message|>A tool.<|end|><|start|>assistant<|channel|>commentary "
        f"to={case.recipient} <|constrain|>json<|message|>{call}<|call|>"
    )
    return {"asks": case.question, "says": [first, f"<|channel|>final<|message|>{ANSWERED}{{result}}<|return|>"]}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One server for all programs."""
    folder = tmp_path_factory.mktemp("programs")
    answers = folder / "answers.json"
    answers.write_text(json.dumps({"answers": [outputs(case, folder / case.name) for case in CASES]}))
    with (
        Served(f"helpers.question_engine:ByQuestion={answers}", folder, "--model", "gpt-oss-20b") as server,
        LoggingProxy(server.url.removesuffix("/v1")) as proxy,
    ):
        yield Setting(folder, proxy)


@pytest.mark.parametrize("case", [mark(case) for case in CASES])
def test_a_call_is_executed_and_its_result_used(case: Case, setting: Setting, tmp_path: Path) -> None:
    work = setting.folder / case.name
    log = tmp_path / "calls"
    server = [sys.executable, str(TESTS / "helpers" / "mcp_weather.py"), "get_weather", str(log)]
    before = len(setting.proxy.asked)
    mcp = server if case.kind == "mcp" else None
    ended = PROGRAMS[case.program].run(tmp_path / "home", work, setting.proxy.url, case.question, mcp)
    asked = setting.proxy.asked[before:]
    refused = [(one.path, one.status, bytes(one.answer)) for one in asked if one.status >= 400]
    assert not refused, refused
    assert ended.status == 0, ended.err
    if case.kind == "mcp":
        assert json.loads(log.read_text()) == PARIS
    else:
        assert (work / "word.txt").read_text().rstrip("\n") == "apricot"
    answer = ended.out.partition(ANSWERED)[2]
    assert answer.strip() and all(word in answer for word in case.shown), ended.out


def test_the_docs_name_what_is_installed() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    for folder in ("programs", "more_programs"):
        pins = json.loads((TESTS / "clients" / folder / "package.json").read_text())["dependencies"]
        assert all(f"`{package}` {version} |" in page for package, version in pins.items()), pins
