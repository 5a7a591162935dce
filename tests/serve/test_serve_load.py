"""Many clients at once, clients that leave, a server that is killed: nothing lost, nothing swapped, memory flat."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from helpers.serve_fakes import Served

CLIENTS = 32
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
LONG = "one two three four five six seven eight nine ten"  # more words than an engine says that stands still after 10


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def streamed(http: httpx.AsyncClient, responses: bool, text: str) -> tuple[int, str, float]:
    """(status, the text that arrived, Retry-After) of one streamed request."""
    body = {"input": text, "stream": True, "store": False} if responses else {"messages": user(text), "stream": True}
    said, over = [], False
    async with http.stream("POST", RESPONSES if responses else CHAT, json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code, "", float(answer.headers.get("retry-after", 0))
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                over = True
                continue
            event = json.loads(line[6:])
            if responses:
                said += [event["delta"]] if event["type"] == "response.output_text.delta" else []
                over = over or event["type"] == "response.completed"
            else:
                said.append(event["choices"][0]["delta"].get("content", ""))
    assert over, "a stream that ended early"
    return 200, "".join(said), 0.0


def question(rng: random.Random, number: int, n: int) -> str:
    words = rng.choices(("alpha", "beta", "Ünïcödé", "日本語", "👩‍👧", "<|end|>"), k=rng.randrange(1, 30))
    return f"client {number} asks for number {n}: " + " ".join(words)


async def load(url: str, answers: int) -> dict[int, int]:
    """Clients that ask one thing after the other, each its own, until all together have had so many answers; what
    comes back must be theirs, whole. Counts by status.
    """
    counts: dict[int, int] = {200: 0, 429: 0}

    async def client(number: int, http: httpx.AsyncClient) -> None:
        rng, n = random.Random(number), 0
        while counts[200] < answers:
            n += 1
            text = question(rng, number, n)
            status, said, retry = await streamed(http, rng.random() < 0.5, text)
            counts[status] = counts.get(status, 0) + 1
            if status == 200:
                assert said == text
            else:
                assert status == 429 and retry >= 1
                await asyncio.sleep(0.2)

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(CLIENTS)))
    return counts


def fill_the_prompt_cache(server: Served) -> None:
    """It keeps 262 144 tokens of rendered messages; until it is full, memory grows as it should."""
    rng = random.Random(0)
    for n in range(12):
        messages = [message for m in range(500) for message in user(question(rng, n, m))]
        server.http.post(CHAT, json={"messages": messages, "max_completion_tokens": 1}).raise_for_status()


def resident(server: Served) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


@pytest.mark.parametrize("answers", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_32_streaming_clients(tmp_path: Path, answers: int) -> None:
    """The queue is shorter than the crowd, so that the 429s are seen too. Memory is compared between two counts of
    answers, with the caches full: two kilobytes that stay for each answer would be seen.
    """
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", "--slots", "2", "--queue", "24") as server:
        url = str(server.http.base_url)
        fill_the_prompt_cache(server)
        asyncio.run(load(url, 500))
        before = resident(server)
        counts = asyncio.run(load(url, answers))
        grown = resident(server) - before
        assert set(counts) == {200, 429} and counts[200] >= answers, counts
        assert grown < 2048 * answers, grown
        assert server.health()["running"] == server.health()["waiting"] == 0
        print(f"\n{counts}, {grown / 2**20:.1f} MB more")


def open_stream(server: Served, text: str, **more: Any) -> httpx.Response:
    request = server.http.build_request("POST", CHAT, json={"messages": user(text), "stream": True, **more})
    return server.http.send(request, stream=True)


@contextmanager
def asking(server: Served, text: str, stream: bool = False) -> Iterator[None]:
    """A client that has sent its request, and leaves at the end."""
    body = json.dumps({"messages": user(text), "stream": stream}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((server.http.base_url.host, server.http.base_url.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        yield


@pytest.mark.parametrize("when", ["answering", "before the first token", "not streamed"])
def test_a_client_that_leaves_frees_its_slot_within_a_token(tmp_path: Path, when: str) -> None:
    """The engine stands still until it is told to stop, and would then say thousands of tokens more."""
    said = 0 if when == "before the first token" else 20
    engine = ["helpers.serve_fakes:Echo=x", "--model", "m", "--set", "times=1000", "--set", f"stands_after={said}"]
    with Served(engine[0], tmp_path, *engine[1:]) as server:
        if when == "answering":
            stream = open_stream(server, "go on")
            next(stream.iter_lines())
            stream.close()
        else:
            with asking(server, "go on", stream=when != "not streamed"):
                server.until(lambda: server.health()["running"] == 1)
        server.until(lambda: server.health()["running"] == 0)
        server.until(lambda: any(line.get("status") == 499 for line in server.lines()))
        assert server.lines()[-1].get("completion_tokens", 0) <= said + 1


def test_a_client_that_leaves_the_queue_leaves_no_hole(tmp_path: Path) -> None:
    with Served(
        "helpers.serve_fakes:Echo=x",
        tmp_path,
        "--model",
        "m",
        "--set",
        "stands_after=10",
        "--queue",
        "2",
    ) as server:
        running = open_stream(server, LONG)
        for _ in range(2):
            with asking(server, "x"):
                server.until(lambda: server.health()["waiting"] == 1)
            server.until(lambda: server.health()["waiting"] == 0)
        running.close()
        assert server.http.post(CHAT, json={"messages": user("y")}).status_code == 200


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    with Served(
        "helpers.serve_fakes:Echo=x",
        tmp_path,
        "--model",
        "m",
        "--set",
        "stands_after=10",
        "--queue",
        "2",
    ) as server:

        def post(n: int) -> httpx.Response:
            return server.http.post(CHAT, json={"messages": user(f"number {n}")})

        running = open_stream(server, LONG)
        with ThreadPoolExecutor(7) as pool:
            queued = [pool.submit(post, n) for n in range(2)]
            server.until(lambda: server.health()["waiting"] == 2)
            answers = list(pool.map(post, range(5)))
            running.close()
            assert [one.result().status_code for one in queued] == [200] * 2
        assert [a.status_code for a in answers] == [429] * 5
        refused = answers[0]
        assert refused.json()["error"]["type"] == "rate_limit_error" and 1 <= int(refused.headers["retry-after"]) <= 60


def test_a_request_has_so_much_time(tmp_path: Path) -> None:
    """The engine stands still after some words: nothing but the end of the request's time can end the answer."""
    limits = ["--set", "times=1000", "--set", "stands_after=20", "--request-seconds", "3"]
    with (
        Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", *limits) as server,
        ThreadPoolExecutor() as pool,
    ):
        standing = pool.submit(server.http.post, RESPONSES, json={"input": "go on"})
        server.until(lambda: server.health()["running"] == 1)
        waiting = server.http.post(CHAT, json={"messages": user("me too")})
        answer = standing.result().json()
        assert answer["status"] == "incomplete" and answer["output"][0]["content"][0]["text"].startswith("go on")
        assert waiting.status_code in (200, 503)  # in the queue for nearly all its time


def test_kill_and_restart_keeps_what_was_answered(tmp_path: Path) -> None:
    """Killed while others are answered; every response that a client has seen complete is there afterwards."""
    store = str(tmp_path / "responses.sqlite")
    seen: dict[str, str] = {}

    def ask(n: int) -> None:
        try:
            for m in range(200):
                answer = server.http.post(RESPONSES, json={"input": f"question {n}.{m}"}).json()
                seen[answer["id"]] = answer["output"][0]["content"][0]["text"]
        except (httpx.HTTPError, json.JSONDecodeError):
            pass

    with (
        Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", store=store) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        running = [pool.submit(ask, n) for n in range(4)]
        server.until(lambda: len(seen) > 20, 30)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        for one in running:
            one.result()
    with Served("helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", store=store) as server:
        for ident, text in seen.items():
            response = server.client.responses.retrieve(ident)
            assert response.output_text == text and response.status == "completed"
        following = server.client.responses.create(model="m", input="and now?", previous_response_id=next(iter(seen)))
        assert following.output_text == "and now?" and following.usage and following.usage.input_tokens > 80


def test_graceful_shutdown_lets_answers_end(tmp_path: Path) -> None:
    with Served(
        "helpers.serve_fakes:Echo=x", tmp_path, "--model", "m", "--set", "delay=0.02", "--set", "times=10"
    ) as server:
        stream = open_stream(server, "to the end")
        lines = stream.iter_lines()
        next(lines)
        server.process.terminate()
        rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        assert server.process.wait(10) in (0, 143, -signal.SIGTERM)
        children = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]
        assert not children and not Path(f"/proc/{server.process.pid}").exists()
