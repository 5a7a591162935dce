"""What conftest.py promises: no engine's tests are skipped without failing the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("@pytest.mark.backend('vllm')\ndef test_x(): pytest.skip('not here')", 1, "test_x needs vllm and was skipped"),
        (
            "@pytest.fixture\ndef engine(): pytest.skip('not here')\n@pytest.mark.backend('vllm')\ndef "
            "test_x(engine): pass",
            1,
            "test_x needs vllm and was skipped",
        ),
        (
            "@pytest.mark.backend('vllm')\n@pytest.mark.skipif(True, reason='never')\ndef test_x(): pass",
            1,
            "test_x needs vllm and was skipped",
        ),
        ("pytest.importorskip('no_such_engine')\ndef test_x(): pass", 2, "test_x.py was skipped as a whole"),
        ("def test_x(): pytest.skip('of no engine')", 0, "1 skipped"),
        ("@pytest.mark.backend('vllm')\ndef test_x(): pass", 0, "1 passed"),
    ],
)
def test_a_skipped_engine_fails_the_run(text: str, code: int, says: str, tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(f"import pytest\n{text}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = backend(name): needs it\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "conftest",
        "--rootdir",
        tmp_path,
        "-c",
        tmp_path / "pytest.ini",
        file,
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True
    )
    assert done.returncode == code and says in done.stdout, done.stdout + done.stderr
