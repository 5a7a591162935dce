"""The parity recipes run: the gate's shell blocks on the pocket checkpoint, and a comparison with a server by its
URL.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "recipes" / "parity"
PROGRAMS = {"gptoss-convert": "gptoss_converters.cli.program", "gptoss-parity": "gptoss_adapters.parity.cli"}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes run, with our programs on PATH as `bin`."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "bin").mkdir()
    for program, module in PROGRAMS.items():
        script = folder / "bin" / program
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from {module} import main; main()" "$@"\n')
        script.chmod(0o755)
    return folder


def shell(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euc", f'PATH="{folder}/bin:$PATH"\n{text}'], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_workflow_is_yaml_and_its_commands_are_the_recipes() -> None:
    (text,) = blocks("ci_gate.md", "yaml")
    steps = yaml.safe_load(text)["jobs"]["parity"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    assert "gptoss-parity run pocket" in commands and "--body-file parity-report/report.md" in commands
    conditions = [step["if"] for step in steps if "if" in step]
    assert len(conditions) == 2 and all(
        "!cancelled()" in c for c in conditions
    )  # the comment and the artifact outlive a failed comparison


def small(text: str) -> str:
    """The same commands on the parity checkpoint p1, which runs in seconds and has no vocabulary."""
    return text.replace("new pocket -o", "new p1 -o").replace("pocket.gguf\n", "pocket.gguf --tokenizer none\n", 1)


@pytest.mark.backend("llama_cpp")
def test_the_gate_runs(folder: Path) -> None:
    by_hand, script = map(small, blocks("ci_gate.md", "bash"))
    done = shell(by_hand, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "comment.md").read_text() == (folder / "parity-report" / "report.md").read_text()
    assert "SAME EXCEPT yarn\\_truncate (confirmed)" in (folder / "comment.md").read_text()
    assert (folder / "parity-report" / "report.html").stat().st_size > 20_000
    shown = script.replace(
        "gptoss-parity run pocket --target llama_cpp=pocket.gguf --no-text -o parity-report",
        "gptoss-parity show parity-report",
    )
    assert shown != script and shell(shown, folder).stdout.splitlines()[-1] == "deploy"
    strict = shell(shown.replace("show parity-report ||", "show parity-report --strict ||"), folder)
    assert strict.returncode == 1 and "different: " in strict.stdout, strict.stderr
    dead = shell(script.replace("llama_cpp=pocket.gguf", "llama_cpp=nothing.gguf"), folder)
    assert dead.returncode == 3 and dead.stdout.splitlines()[-1].startswith("not comparable"), dead.stderr


@pytest.fixture
def url(pocket_gguf: Path) -> Iterator[str]:
    """What the recipe starts, on a free port, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started, _ = blocks("running_server.md", "python")
    code = (
        started.replace('"pocket.gguf"', repr(str(pocket_gguf))).replace("8080", str(port))
        + "import time\ntime.sleep(1200)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    assert str(port) in next(line for line in server.stdout if line.startswith("http")), "the recipe prints the address"
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.mark.backend("llama_server")
def test_a_running_server_is_compared(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--target llama_server=http://localhost:8080" in blocks("running_server.md", "bash")[1]
    _, check = blocks("running_server.md", "python")
    names: dict[str, object] = {}
    exec(check.replace("check_text_layer(None, backend)", "check_text_layer(None, backend, count=140)"), names)
    names["check"](url)  # type: ignore[operator]
    said = capsys.readouterr().out
    assert "stop ids: pass, 4 of 4" in said and "prompt token counts: pass" in said and "tokenizer: look" in said


@pytest.mark.slow  # the whole comparison, on the pocket checkpoint
@pytest.mark.timeout(1200)
@pytest.mark.backend("llama_server")
def test_the_whole_comparison_of_a_running_server(url: str, pocket: Path, folder: Path) -> None:
    command = blocks("running_server.md", "bash")[1]
    done = shell(command.replace("http://localhost:8080", url).replace("run pocket", f"run {pocket}"), folder)
    assert done.returncode == 0 and "SAME EXCEPT" in done.stdout, (done.stdout, done.stderr)
