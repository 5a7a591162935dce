"""schemathesis on our OpenAPI description: what it describes is what the server does, for good and for bad requests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.serve_fakes import KEY, Served

# All that schemathesis has, but one: a request of the right shape may still be refused, because what messages, tools
# and calls mean to each other is more than a schema says.
LEFT_OUT = "positive_data_acceptance"


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_schemathesis_finds_nothing(tmp_path: Path, examples: int) -> None:
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", key=KEY) as server:
        made = server.client.responses.create(model="m", input="x").id
        settings = f'[parameters]\n"path.model" = "m"\n"path.response_id" = "{made}"\n'
        (tmp_path / "schemathesis.toml").write_text(settings)
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
            "--request-timeout",
            "60",  # a busy machine is no fault of the server
            "--no-color",
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, (
            done.stdout[-9000:]
            + done.stderr[-2000:]
            + str([line for line in server.lines() if line.get("status", 0) >= 500])
        )
        assert 'status="500"' not in server.http.get("/metrics").text
        assert server.metric('gptoss_requests_total{route="POST /v1/chat/completions",status="200"}') > 0
        found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert found and found[1] == found[2] and int(found[1]) > 8 * examples, done.stdout[-1500:]
