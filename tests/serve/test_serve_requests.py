"""What the server refuses and how, with --strict-arguments: OpenAI's error shape, the right status, never a 500; keys,
limits, health, metrics, logs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from helpers.bad_requests import BAD_CHAT, BAD_RESPONSES, FUNCTION, RAW, USER
from helpers.serve_fakes import KEY, Served
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from gptoss_adapters.errors import BadInput
from gptoss_adapters.serve.bodies import ChatBody, ResponsesBody
from gptoss_adapters.serve.store import Store

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(
        "helpers.serve_fakes:Echo=x",
        tmp_path_factory.mktemp("server"),
        "--model",
        "pocket",
        "--max-body-mb",
        "1",
        "--strict-arguments",
        key=KEY,
    ) as running:
        yield running


def is_error(answer: httpx.Response, status: int | None = None) -> dict[str, Any]:
    assert (400 <= answer.status_code < 500) if status is None else answer.status_code == status, (
        answer.status_code,
        answer.text,
    )
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and isinstance(error["type"], str)
    return error


def test_there_are_a_hundred_bad_requests() -> None:
    assert len(BAD_CHAT) + len(BAD_RESPONSES) + len(RAW) >= 100


def test_bad_requests_are_the_clients_fault(server: Served) -> None:
    for path, bodies in ((CHAT, BAD_CHAT), (RESPONSES, BAD_RESPONSES)):
        for body in bodies:
            data = json.dumps(body)
            error = is_error(server.http.post(path, content=data, headers={"content-type": "application/json"}))
            assert len(error["message"]) < 1000 and "Traceback" not in error["message"], body
    for data, headers, status in RAW:
        for path in (CHAT, RESPONSES):
            is_error(
                server.http.post(path, content=data, headers={"content-type": "application/json", **headers}), status
            )
    assert server.metric("gptoss_requests_waiting") == 0 and 'status="500"' not in server.http.get("/metrics").text


def test_errors_name_the_bad_value(server: Served) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "text"),
        ({"messages": USER, "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"messages": USER, "unheard_of": 1}, "unheard_of", "unknown argument"),
        ({"messages": USER, "tools": [FUNCTION, {"type": "banana"}]}, "tools[1].type", "unknown tool type"),
        ({"messages": USER, "model": "gpt-4o"}, "model", "pocket"),
    ]
    for body, param, message in cases:
        error = is_error(server.http.post(CHAT, json=body))
        assert error["param"].startswith(param) and message in error["message"], error


def test_unknown_places(server: Served) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/responses/x/y", 404),
    ):
        is_error(server.http.request(method, path), status)
    listing = f"/v1/responses/{server.client.responses.create(model='pocket', input='x').id}/input_items"
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nobody"):
        is_error(server.http.get(f"{listing}?{query}"), 400)
    is_error(server.http.get(listing.removesuffix("/input_items") + "?stream=true"), 400)


def test_the_prompt_must_fit(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("[200002]\n")
    with Served("helpers.serve_fakes:Scripted=outputs", tmp_path, "--model", "m", "--set", "n_ctx=80") as server:
        assert (
            is_error(server.http.post(CHAT, json={"messages": [{"role": "user", "content": "word " * 100}]}), 400)[
                "code"
            ]
            == "context_length_exceeded"
        )
        assert server.http.post(CHAT, json={"messages": USER}).status_code == 200


def test_a_key_is_wanted_but_for_health(server: Served) -> None:
    for headers in (
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer \xff"},
        {"Authorization": f"Bearer {KEY}x"},
    ):
        raw = {key: value.encode("latin-1") for key, value in headers.items()}
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert is_error(server.http.get(path, headers=raw), 401)["code"] == "invalid_api_key"
        assert server.http.get("/health", headers=raw).json()["status"] == "ok"
    assert server.http.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        server.client.with_options(api_key="wrong").models.list()


def test_health_metrics_and_a_log_without_contents(server: Served) -> None:
    before = server.metric("gptoss_completion_tokens_total")
    said = "a secret that no log may hold"
    answer = server.client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": said}])
    assert answer.choices[0].message.content == said and answer.usage
    assert server.metric("gptoss_completion_tokens_total") == before + answer.usage.completion_tokens
    assert server.health() == {
        "status": "ok",
        "model": "pocket",
        "engine": "echo",
        "version": "1",
        "running": 0,
        "waiting": 0,
    }
    line = server.line_of(answer._request_id)
    text = server.http.get("/metrics").text
    assert (
        'gptoss_requests_total{route="POST /v1/chat/completions",status="200"}' in text
        and "gptoss_request_seconds_bucket" in text
    )
    assert (
        line["status"] == 200
        and line["completion_tokens"] == answer.usage.completion_tokens
        and len(line["request"]) == 32
    )
    assert "secret" not in server.log.read_text()


def test_a_failing_backend_is_told_and_replaced(tmp_path: Path) -> None:
    for trouble in ("fail", "die"):
        with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", "--set", f"trouble={trouble}") as server:
            for _ in range(2):
                error = is_error(server.http.post(CHAT, json={"messages": USER}), 503)
                assert error["type"] == "server_error" and error["code"] == "backend_failed"
                with pytest.raises(openai.APIError):
                    messages: Any = USER
                    list(server.client.chat.completions.create(model="m", messages=messages, stream=True))
                events = list(server.client.responses.create(model="m", input="x", stream=True))
                assert events[-1].type == "response.failed" and events[-1].response.error
            assert server.health()["running"] == 0


def test_a_slow_body_and_slow_headers_do_not_hold_the_server(server: Served) -> None:
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
            b"100\r\n\r\n{"
        )
        assert server.http.get("/health").status_code == 200
        slow.shutdown(socket.SHUT_WR)


def test_every_argument_of_the_api_is_decided_upon() -> None:
    """Declared in our bodies, or refused as unknown on purpose: none."""
    kinds = (
        (chat_params.CompletionCreateParamsBase, ChatBody),
        (response_params.ResponseCreateParamsBase, ResponsesBody),
    )
    for theirs, ours in kinds:
        assert set(theirs.__annotations__) <= set(ours.model_fields), set(theirs.__annotations__) - set(
            ours.model_fields
        )


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, and it is long enough to be looked at" * 30)
    with pytest.raises(BadInput, match="text: not a response store"):
        Store(tmp_path / "text")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--backend", "nonsense=x"], 2, "unknown backend nonsense"),
        (["--backend", "helpers.serve_fakes:Echo=x", "--set", "delay"], 2, "expected NAME=VALUE"),
        (["--backend", "helpers.serve_fakes:Echo=x", "--set", "depth=1"], 2, "has no option depth"),
        (["--backend", "llama_cpp=missing.gguf"], 3, "missing.gguf"),
        (["--backend", "helpers.serve_fakes:Echo=x", "--store", "/nowhere/x.sqlite"], 4, "/nowhere/x.sqlite"),
        (["--backend", "helpers.serve_fakes:Echo=x", "--host", "192.0.2.1"], 4, "cannot listen on 192.0.2.1"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, arguments: list[str], code: int, line: str, server: Served
) -> None:
    import os

    from helpers.serve_fakes import TESTS

    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])}
    command = [sys.executable, "-m", "gptoss_adapters.serve.cli", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False, timeout=60)
    assert done.returncode == code and line in done.stderr and "Traceback" not in done.stderr, done.stderr
