"""GET /v1/models in every client's words, and web pages of allowed origins as clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import anthropic
import pytest
from helpers.serve_fakes import KEY, Served

from gptoss_adapters.errors import UsageError
from gptoss_adapters.serve.cors import check_origins

PAGE = "https://app.example"
ECHO = "helpers.serve_fakes:Echo=x"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os,anthropic-version",
}
CHAT = {"model": "gpt-oss-20b", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("echo")
    options = ("--cors-origin", PAGE, "--cors-origin", "http://localhost:3000")
    with Served(ECHO, folder, "--model", "gpt-oss-20b", *options, key=KEY) as started:
        yield started


def test_what_openais_clients_read(server: Served) -> None:
    (listed,) = server.http.get("/v1/models").json()["data"]
    assert server.http.get("/v1/models/gpt-oss-20b").json() == listed
    assert {listed[key] for key in ("max_model_len", "context_length", "context_window", "max_context_length")} == {
        100_000
    }
    assert (listed["id"], listed["object"], listed["owned_by"]) == ("gpt-oss-20b", "model", "gptoss-adapters")
    assert "tool_use" in listed["capabilities"] and "tools" in listed["supported_parameters"]
    assert "structured_outputs" not in listed["supported_parameters"], "this engine takes no grammar"
    (model,) = server.client.models.list().data
    assert model.id == "gpt-oss-20b" and server.client.models.retrieve(model.id).created == model.created
    assert server.http.get("/v1/models/other").status_code == 404


@pytest.mark.backend("llama_server")
def test_parameters_are_the_engines(pocket: Path) -> None:
    with Served("llama_server=pocket.gguf", pocket, "--set", "n_ctx=2048") as server:
        (listed,) = server.http.get("/v1/models").json()["data"]
    assert listed["context_length"] == listed["meta"]["n_ctx"] == 2048
    assert {"structured_outputs", "logprobs", "logit_bias"} <= set(listed["supported_parameters"])


def test_what_anthropics_clients_read(server: Served) -> None:
    client = anthropic.Anthropic(base_url=str(server.http.base_url), api_key=KEY, max_retries=0)
    page = client.models.list()
    (model,) = page.data
    assert not page.has_next_page() and page.first_id == page.last_id == "gpt-oss-20b"
    assert (model.type, model.id, model.display_name) == ("model", "gpt-oss-20b", "gpt-oss-20b")
    assert isinstance(model.created_at, datetime) and model.max_input_tokens == 100_000
    assert client.models.retrieve("gpt-oss-20b").to_dict() == model.to_dict()
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("claude")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


def test_a_preflight_needs_no_key(server: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/messages?beta=true", "/v1/responses"):
        answer = server.http.options(path, headers=PREFLIGHT | {"Authorization": ""})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-credentials"] == "true"
        allowed = answer.headers["access-control-allow-headers"].replace(" ", "").lower().split(",")
        assert set(PREFLIGHT["Access-Control-Request-Headers"].split(",")) <= set(allowed)
        assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_page_reads_its_answer(server: Served, stream: bool) -> None:
    """The request itself needs the key; errors can be read too."""
    answer = server.http.post("/v1/chat/completions", json=CHAT | {"stream": stream}, headers={"Origin": PAGE})
    refused = server.http.post("/v1/chat/completions", json=CHAT, headers={"Origin": PAGE, "Authorization": "Bearer x"})
    assert (answer.status_code, refused.status_code) == (200, 401)
    for one in (answer, refused):
        assert one.headers["access-control-allow-origin"] == PAGE and "origin" in one.headers["vary"].lower()
        assert "x-request-id" in one.headers["access-control-expose-headers"]


def test_other_pages_are_left_out(server: Served) -> None:
    other = {"Origin": "https://evil.example"}
    assert server.http.options("/v1/responses", headers=PREFLIGHT | other).status_code == 400
    answer = server.http.post("/v1/chat/completions", json=CHAT, headers=other)
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_option_there_is_no_cors(tmp_path: Path) -> None:
    with Served(ECHO, tmp_path, "--model", "gpt-oss-20b") as server:
        assert server.http.options("/v1/responses", headers=PREFLIGHT).status_code == 405
        answer = server.http.post("/v1/chat/completions", json=CHAT, headers={"Origin": PAGE})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_every_origin(tmp_path: Path) -> None:
    with Served(ECHO, tmp_path, "--model", "gpt-oss-20b", "--cors-origin", "*") as server:
        answer = server.http.post("/v1/chat/completions", json=CHAT, headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/path", "null", ""])
def test_an_origin_that_would_never_match(origin: str) -> None:
    with pytest.raises(UsageError, match="cors-origin"):
        check_origins([origin])
    assert check_origins([PAGE, "*"]) == ("*",)


def test_the_command_says_so() -> None:
    command = [sys.executable, "-m", "gptoss_adapters.serve.cli", "--backend", ECHO, "--cors-origin", "app.example"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--cors-origin" in done.stderr and "Traceback" not in done.stderr
