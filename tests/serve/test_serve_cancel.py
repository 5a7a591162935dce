"""Responses that are ended by another request, token counts, and the names of models."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gptoss_harmony.vocabulary import load_vocabulary
from helpers.outputs import ids_of
from helpers.serve_inside import Said, ask_app, post

from gptoss_adapters.backends import Token
from gptoss_adapters.backends.protocol import StopReason
from gptoss_adapters.errors import BadInput
from gptoss_adapters.serve.app import App, create_app
from gptoss_adapters.serve.sealing import Sealer, make_key, open_key_file
from gptoss_adapters.serve.settings import Settings
from gptoss_adapters.serve.store import Store

CHAT, RESPONSES, COUNT = "/v1/chat/completions", "/v1/responses", "/v1/responses/input_tokens"
FINAL = "<|channel|>final<|message|>Done.<|return|>"
USER = {"role": "user", "content": "hello"}


class Endless(Said):
    """Says the same word until it is cancelled."""

    def __init__(self) -> None:
        super().__init__(FINAL)
        self._cancelled = threading.Event()
        self.n_said = 0

    def stream(self, tokens: Sequence[int], **_: Any) -> Generator[Token, None, StopReason]:
        yield from (Token(i, None) for i in ids_of("<|channel|>final<|message|>"))
        while not self._cancelled.is_set():
            self.n_said += 1
            yield Token(load_vocabulary().encode(" on")[0], None)
            time.sleep(0.001)
        return "cancelled"

    def cancel(self) -> None:
        self._cancelled.set()


async def get(app: App, path: str) -> tuple[int, Any]:
    status, data = await post(app, path, {}, method="GET")
    return status, json.loads(data)


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_response_is_cancelled_and_kept(stream: bool) -> None:
    async def run() -> None:
        backend: Any = Endless()
        app = create_app([backend], Settings("m"))
        asking = asyncio.ensure_future(post(app, RESPONSES, {"input": "x", "stream": stream}))
        while backend.n_said < 10:
            await asyncio.sleep(0.001)
        ident = next(iter(app.service.running))
        status, data = await post(app, f"{RESPONSES}/{ident}/cancel", {})
        cancelled = json.loads(data)
        assert (status, cancelled["id"], cancelled["status"]) == (200, ident, "cancelled")
        assert cancelled["output"][0]["content"][0]["text"].startswith(" on") and cancelled["completed_at"] is None
        _, answer = await asking
        if stream:
            last = json.loads(answer.decode().strip().rpartition("\ndata: ")[2])
            assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
        else:
            assert json.loads(answer) == cancelled
        assert await get(app, f"{RESPONSES}/{ident}") == (200, cancelled)
        status, data = await post(app, f"{RESPONSES}/{ident}/cancel", {})
        assert status == 400 and "cancelled cannot be cancelled" in json.loads(data)["error"]["message"]
        assert not app.service.running
        app.service.scheduler.close()

    asyncio.run(run())


def test_finished_and_unknown_responses_are_not_cancelled() -> None:
    store = Store()
    (_, made), *_ = ask_app([(RESPONSES, {"input": "x"})], FINAL, store=store)
    paths = [f"{RESPONSES}/{ident}/cancel" for ident in (made["id"], "resp_nowhere")]
    answers = ask_app([(path, {}) for path in paths], FINAL, store=store)
    assert [status for status, _ in answers] == [400, 404]
    assert all(answer["error"]["param"] == "response_id" for _, answer in answers)


def test_input_tokens_are_those_of_the_request() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}, {"type": "web_search"}]
    body = {"input": [USER], "instructions": "Be brief.", "tools": tools, "reasoning": {"effort": "high"}}
    (_, counted), (_, answer), (_, empty) = ask_app([(COUNT, body), (RESPONSES, body), (COUNT, {})], FINAL)
    assert counted["object"] == "response.input_tokens" and "web_search" in counted["warnings"][0]
    assert counted["input_tokens"] == answer["usage"]["input_tokens"] > empty["input_tokens"] > 0


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": [USER]}), (RESPONSES, {"input": "x"})])
def test_models_by_several_names_and_by_any(path: str, body: dict[str, Any]) -> None:
    names = ["a", "b", None, "gpt-4o"]
    requests = [(path, body | {"model": name}) for name in names]
    answers = ask_app(requests, FINAL, model="a", aliases=("b",))
    assert [status for status, _ in answers] == [200, 200, 200, 404]
    assert [answer["model"] for _, answer in answers[:3]] == ["a", "b", "a"]
    assert answers[3][1]["error"]["code"] == "model_not_found" and "'a', 'b'" in answers[3][1]["error"]["message"]
    _, foreign = ask_app(requests[3:], FINAL, model="a", any_model=True, strict_arguments=True)[0]
    assert foreign["model"] == "a" and foreign["warnings"] == ["model: 'gpt-4o' is not served here: 'a' answers"]


THOUGHT = "I look at it. Then I call."
CALL = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    '<|constrain|>json<|message|>{"a": 1}<|call|>'
)
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
ENCRYPTED = {"tools": TOOLS, "include": ["reasoning.encrypted_content"], "store": False}


def ask_again(store: Store, change: dict[str, Any], **settings: Any) -> tuple[Any, str]:
    """A stateless loop: the second answer, and its prompt. `change`: what becomes of the reasoning item."""
    backend: Any = Said(CALL, FINAL)

    async def run() -> Any:
        app = create_app([backend], Settings("m", **settings), store)
        first = json.loads((await post(app, RESPONSES, {"input": [USER], **ENCRYPTED}))[1])
        thought, call = first["output"]
        assert THOUGHT not in thought["encrypted_content"] and len(thought["encrypted_content"]) > 100
        thought = {key: value for key, value in (thought | change).items() if key != "content"}
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "x"}
        body = {"input": [USER, thought, call, output], **ENCRYPTED}
        status, data = await post(app, RESPONSES, body)
        assert status == 200
        app.service.scheduler.close()
        return json.loads(data)

    answer = asyncio.run(run())
    return answer, load_vocabulary().decode(backend.prompts[1])


def test_stateless_clients_keep_the_chain_of_thought(tmp_path: Path) -> None:
    for settings in ({}, {"encryption_key_file": str(tmp_path / "key")}):
        answer, prompt = ask_again(Store(), {"summary": []}, **settings)
        assert f"analysis<|message|>{THOUGHT}<|end|>" in prompt and "warnings" not in answer
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("blob", ["gAAAAABforeign", "x" * 500, "\u20ac", Sealer([make_key()]).seal("other")])
def test_foreign_blobs_are_ignored(blob: str) -> None:
    answer, prompt = ask_again(Store(), {"encrypted_content": blob}, strict_arguments=True)
    assert answer["warnings"][0].startswith("input[1].encrypted_content: ") and THOUGHT not in prompt


def test_a_changed_blob_is_foreign() -> None:
    sealer = Sealer([make_key()])
    blob = sealer.seal(THOUGHT)
    assert sealer.open(blob) == THOUGHT
    for at in range(0, len(blob) - 4, 7):
        changed = blob[:at] + ("A" if blob[at] != "A" else "B") + blob[at + 1 :]
        assert sealer.open(changed) is None


def test_keys_of_a_file_and_of_a_store(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    old = open_key_file(str(path)).seal("x")
    path.write_text(f"# the new one first\n{make_key()}\n{path.read_text()}")
    both = open_key_file(str(path))
    assert both.open(old) == "x" and open_key_file(str(path)).open(both.seal("y")) == "y"
    for text in ("", "short\n"):
        path.write_text(text)
        with pytest.raises(BadInput, match="keys: not a file of Fernet keys"):
            open_key_file(str(path))
    store = Store(tmp_path / "store")
    key = store.secret("sealing", make_key)
    store.close()
    again = Store(tmp_path / "store")
    assert again.secret("sealing", make_key) == key
    again.close()


def test_summaries_are_completed_from_the_store() -> None:
    """A client that keeps the items of a stored response without their content."""
    store = Store()
    (_, first), *_ = ask_app([(RESPONSES, {"input": [USER], "tools": TOOLS})], CALL, store=store)
    thought = {"type": "reasoning", "id": first["output"][0]["id"], "summary": [{"type": "summary_text", "text": "I"}]}
    output = {"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "x"}
    body = {"input": [USER, thought, first["output"][1], output], "tools": TOOLS}
    (_, kept), (_, lost) = ask_app(
        [(COUNT, body), (COUNT, {**body, "input": [USER, *first["output"], output]})], FINAL, store=store
    )
    assert kept["input_tokens"] == lost["input_tokens"]
