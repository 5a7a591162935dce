"""gptoss-serve over vLLM, in vLLM's own environment: the same events as on the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.pocket_client import CONVERSATION, REQUESTS, chat_agent
from helpers.serve_fakes import Served

from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write

pytestmark = pytest.mark.backend("vllm")
NAMES = [
    "chat",
    "chat, streamed",
    "chat, tools, streamed",
    "chat, stop, streamed",
    "chat, logprobs",
    "responses, streamed",
    "responses, tools, streamed",
    "responses, chained",
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    folder = tmp_path_factory.mktemp("vllm_served")
    write(plan_new("pocket", folder / "pocket"), sync=False)
    with (
        Served("vllm=pocket", folder, "--model", "pocket", "--set", "n_ctx=1024") as vllm,
        Served("torch=pocket", folder, "--model", "pocket") as reference,
    ):
        yield vllm, reference


@pytest.mark.parametrize("name", NAMES)
def test_vllm_gives_the_same_events(name: str, servers: Any) -> None:
    vllm, reference = servers
    assert REQUESTS[name](vllm.client) == REQUESTS[name](reference.client)


def test_an_agent_with_two_tools(servers: Any) -> None:
    assert [text for text, _, _ in chat_agent(servers[0].client)] == [answer for _, answer in CONVERSATION]
