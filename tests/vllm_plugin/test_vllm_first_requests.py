"""The first request of each real client on gptoss-serve over vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.first_requests import ANSWERED, RECORDS, ROOM, SECONDS, check_answered
from helpers.serve_fakes import Served

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vllm_first")
    write(plan_new("pocket", folder / "pocket"), sync=False)
    with Served("vllm=pocket", folder, "--model", "gpt-oss-20b", "--set", ROOM) as started:
        yield started


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", ANSWERED)
def test_a_first_request_is_answered(server: Served, name: str) -> None:
    check_answered(server, RECORDS[name])
