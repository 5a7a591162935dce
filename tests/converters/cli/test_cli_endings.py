"""`gptoss-convert` that cannot go on: its exit codes, one line per error, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.convert_cli import SOURCE, Done, run
from helpers.crafted import copy


def refused(done: Done, code: int, words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == code and len(lines) == 1 and re.search(words, lines[0]), done.stderr


def test_no_such_input(tmp_path: Path) -> None:
    refused(run("to-gguf", tmp_path / "nowhere", "-o", tmp_path / "x.gguf"), 3, "nowhere: no such file or folder")
    refused(
        run("to-gguf", SOURCE, "-o", tmp_path / "x.gguf", "--tokenizer", tmp_path),
        3,
        "tokenizer.json: no such tokenizer",
    )


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    folder, out = copy(tmp_path / "c\udcff"), tmp_path / "out.gguf"
    refused(run("to-gguf", folder, "-o", out), 3, r"metadata text is not UTF-8 .got C\\udcff")
    refused(run("to-gguf", SOURCE, "-o", out, "--name", "\udcff"), 3, "metadata text is not UTF-8")
    assert run("to-gguf", folder, "-o", out, "--name", "c").returncode == 0
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(run("to-gguf", SOURCE, "-o", out, "--tokenizer", folder), 3, "chat_template.jinja: the text is not UTF-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "\ud800"}))
    refused(run("to-gguf", folder, "-o", out, "--name", "c"), 3, "metadata text is not UTF-8")


def test_output_exists(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    out.write_bytes(b"mine")
    refused(run("to-gguf", SOURCE, "-o", out), 4, "x.gguf: exists already: add --force")
    assert out.read_bytes() == b"mine"
    assert run("to-gguf", SOURCE, "-o", out, "--force").returncode == 0


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    refused(run("to-gguf", SOURCE, "-o", tmp_path / "no" / "x.gguf"), 4, "no: no such folder")
    refused(run("to-gguf", SOURCE, "-o", "/proc/x.gguf"), 4, "x.gguf|/proc")


def test_full_disk(tmp_path: Path) -> None:
    """A small tmpfs in a mount namespace of our own; where that is not allowed, the answer of a disk of its size
    stands in.
    """
    command = [
        sys.executable,
        "-m",
        "gptoss_converters.cli",
        "to-gguf",
        str(SOURCE),
        "-o",
        f"{tmp_path}/x.gguf",
    ]
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
        inside = f"{mount} && {shlex.join(command)}; code=$?; ls -A {tmp_path}; exit $code"
        done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, check=False)
    else:
        small = (
            "import os, sys; real = os.statvfs; os.statvfs = lambda p: os.statvfs_result((4096, 4096, 75, 75, "
            "75, *real(p)[5:]))"
        )
        inside = f"{small}; sys.argv[1:] = {command[3:]!r}; from gptoss_converters.cli.program import main; main()"
        done = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=False)
    refused(done, 4, "not enough space .expected 88.... bytes free")
    assert done.stdout == "" and not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """While it makes a big checkpoint: no traceback, nothing under a final name, and it goes on where it was."""
    command = [
        sys.executable,
        "-m",
        "gptoss_converters.cli",
        "new",
        "20b-shape",
        "--layers",
        "1",
        "-o",
        str(tmp_path / "c"),
    ]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit it ignored
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    while process.poll() is None and sum(p.stat().st_blocks for p in tmp_path.glob("c/.*.part-*")) < 2048:
        time.sleep(0.02)  # until it has written a megabyte
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert re.fullmatch(
            r"error: .*c/.*: interrupted: what is done stays in \..*\.part-[0-9a-f]*: run again with --resume\n", stderr
        ), stderr
    else:
        assert stderr == ""
    assert [p for p in (tmp_path / "c").iterdir() if not p.name.startswith(".")] == []


def test_ctrl_c_while_packages_are_imported() -> None:
    """Some print tracebacks of their own when they are interrupted, and raise another error."""
    program = (
        "from gptoss_adapters import console\nwith console.loading():\n    print(flush=True)\n    while True: pass"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("to-gguf", tmp_path / "nowhere", "-o", tmp_path / "x.gguf", env={**os.environ, "GPTOSS_DEBUG": "1"})
    assert done.returncode == 3 and "Traceback" in done.stderr


def test_stdout_that_nobody_reads(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gptoss_converters.cli inspect {SOURCE} --no-histograms | head -0"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
