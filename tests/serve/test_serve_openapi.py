"""schemathesis on our OpenAPI description: what it describes is what the server does, for good and for bad requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.serve_fakes import KEY, Served

# All that schemathesis has, but one: a request of the right shape may still be refused, because what messages, tools
# and
# calls mean to each other is more than a schema says.
LEFT_OUT = "positive_data_acceptance"


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(tmp_path: Path, examples: int) -> None:
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", key=KEY) as server:
        made = server.client.responses.create(model="m", input="x").id
        (tmp_path / "schemathesis.toml").write_text(
            f'[parameters]\n"path.model" = "m"\n"path.response_id" = "{made}"\n'
        )
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            server.url.removesuffix("/v1") + "/openapi.json",
            "-H",
            f"Authorization: Bearer {KEY}",
            "--checks",
            "all",
            "--exclude-checks",
            LEFT_OUT,
            "--max-examples",
            str(examples),
            "--seed",
            "1",
            "--generation-deterministic",
            "--phases",
            "examples,coverage,fuzzing",
            "--suppress-health-check",
            "all",
            "--no-color",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=280)
        assert done.returncode == 0, (
            done.stdout[-9000:]
            + done.stderr[-2000:]
            + str([line for line in server.lines() if line.get("status", 0) >= 500])
        )
        assert 'status="500"' not in server.http.get("/metrics").text
        assert server.metric('gptoss_requests_total{route="POST /v1/chat/completions",status="200"}') > 0
        print(done.stdout[-1500:])
