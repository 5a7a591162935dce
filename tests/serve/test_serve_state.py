"""What a request may point at: items of earlier responses, wherever stored, and pictures that tools gave back."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.outputs import ids_of
from helpers.serve_fakes import TESTS
from helpers.serve_inside import post

from gptoss_adapters.backends import open_backend
from gptoss_adapters.serve.app import create_app
from gptoss_adapters.serve.settings import Settings
from gptoss_adapters.serve.store import Store

CALL = (
    "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    '<|constrain|>json<|message|>{"a": 1}<|call|>'
)
FINAL = "<|channel|>final<|message|>Done.<|return|>"
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
ASKED = {"role": "user", "content": "go"}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,x"}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *(p for p in sys.path if p)]))
    (tmp_path / "outputs").write_text("".join(json.dumps(ids_of(text)) + "\n" for text in (CALL, FINAL)))
    return f"helpers.serve_fakes:Scripted={tmp_path / 'outputs'}"


def test_references_and_pictures(script: str) -> None:
    """The loop of the AI SDK: what was answered comes back as references, without previous_response_id."""

    async def run() -> None:
        with open_backend(script) as backend:
            app = create_app([backend], Settings("m"))

            async def ask(path: str, **body: Any) -> tuple[int, Any]:
                status, data = await post(app, path, body)
                return status, json.loads(data)

            _, first = await ask("/v1/responses", input=[ASKED], tools=TOOLS)
            items = first["output"]
            assert [item["type"] for item in items] == ["reasoning", "function_call"]
            references = [{"type": "item_reference", "id": items[0]["id"]}, {"id": items[1]["id"]}]
            output = {"type": "function_call_output", "call_id": items[1]["call_id"], "output": [PICTURE]}
            history = [ASKED, *references, output]
            status, second = await ask("/v1/responses", input=history, tools=TOOLS)
            assert status == 200, second
            assert second["output"][0]["content"][0]["text"] == "Done."
            assert second["warnings"] == ["input[3].output[0]: gpt-oss reads text only: the image is left out"]
            _, listed = await ask("/v1/responses", input=history, tools=TOOLS)
            assert listed["usage"]["input_tokens"] == second["usage"]["input_tokens"]

            lost = [{"type": "item_reference", "id": "rs_nowhere"}]
            status, refused = await ask("/v1/responses", input=[ASKED, *lost])
            assert (status, refused["error"]["param"]) == (404, "input[1].id")

            call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            result = {
                "role": "tool",
                "tool_call_id": "c",
                "content": [{"type": "image_url", "image_url": {"url": "x"}}],
            }
            messages = [ASKED, {"role": "assistant", "tool_calls": [call]}, result]
            status, answer = await ask("/v1/chat/completions", messages=messages)
            assert status == 200 and answer["warnings"][0].startswith("messages[2].content[0]: ")
            app.service.scheduler.close()

    asyncio.run(run())


def test_items_are_found_as_long_as_a_response_has_them(tmp_path: Path) -> None:
    def response(ident: str) -> dict[str, Any]:
        item = {"type": "message", "id": f"msg_{ident}"}
        return {"id": ident, "created_at": 1, "previous_response_id": None, "output": [item]}

    store = Store(tmp_path / "store")
    shared = {"type": "message", "id": "msg_in"}
    store.add(response("a"), [shared])
    store.add(response("b"), [shared])
    assert store.find_item("msg_a") == {"type": "message", "id": "msg_a"} and store.find_item("msg_c") is None
    assert store.delete("a") and not store.delete("a")
    assert store.find_item("msg_a") is None and store.find_item("msg_in") == shared
    store.close()


def test_a_store_of_the_first_version_is_read(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store") as old:
        old.execute(
            "create table responses (id text primary key, created integer not null, previous text, input text not null,"
            " response text not null) without rowid"
        )
        whole = {"id": "r", "previous_response_id": None, "output": [{"id": "msg_1"}]}
        old.execute("insert into responses values ('r', 1, null, '[]', ?)", (json.dumps(whole),))
        old.execute("pragma user_version=1")
    store = Store(tmp_path / "store")
    assert store.find_item("msg_1") == {"id": "msg_1"} and store.get("r")
    store.close()
    Store(tmp_path / "store").close()
