"""The first request of each real client, as captured: streamed and whole, on the reference and llama.cpp too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gptoss_harmony import load_vocabulary
from helpers.first_requests import ANSWERED, RECORDS, ROOM, SECONDS, check_answered, post
from helpers.serve_fakes import Served
from helpers.serve_inside import Said, ask_app

from gptoss_adapters.backends.ollama import prompt_text, text_ids

BACKENDS = {
    "echo": ["helpers.serve_fakes:Echo=x"],
    "torch": ["torch=pocket"],
    "transformers": ["transformers=pocket"],
    "llama_cpp": ["llama_cpp=pocket.gguf", "--set", ROOM],
    "llama_server": ["llama_server=pocket.gguf", "--set", ROOM],
}
QUESTION = "What is the weather in Paris?"


@pytest.fixture(scope="module", params=BACKENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("echo") if request.param == "echo" else request.getfixturevalue("pocket")
    with Served(BACKENDS[request.param][0], folder, "--model", "gpt-oss-20b", *BACKENDS[request.param][1:]) as started:
        yield started


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", ANSWERED)
def test_a_first_request_is_answered(server: Served, name: str) -> None:
    check_answered(server, RECORDS[name])


@pytest.mark.parametrize("name", ANSWERED)
def test_ollama_can_be_given_its_prompt(name: str) -> None:
    """Ollama takes text, and reads it as ids again: these must be the ids that every other engine is given."""
    record = RECORDS[name]
    backend = Said("<|channel|>final<|message|>Yes.<|return|>")
    ((status, answer),) = ask_app(
        [(record["path"].partition("?")[0], {**record["body"], "model": "m"})], backend=backend
    )
    assert status == 200, answer
    (prompt,) = backend.prompts
    assert text_ids(prompt_text(prompt, load_vocabulary()), load_vocabulary()) == prompt


@pytest.mark.parametrize(
    ("recipient", "namespace", "name"),
    [("multi_agent_v1.close_agent", "multi_agent_v1", "close_agent"), ("functions.exec_command", None, "exec_command")],
)
def test_codex_s_calls_come_back_as_it_declared_them(
    tmp_path: Path, recipient: str, namespace: str | None, name: str
) -> None:
    record = RECORDS["codex"]
    call = f'<|channel|>commentary to={recipient} <|constrain|>json<|message|>{{"target": "a"}}<|call|>'
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"answers": [{"asks": QUESTION, "says": [call]}]}))
    with Served(f"helpers.question_engine:ByQuestion={answers}", tmp_path, "--model", "gpt-oss-20b") as server:
        whole = post(server, record, stream=False).json()
        streamed = post(server, record).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
    last = next(event["response"] for event in events if event["type"] == "response.completed")
    for response in (whole, last):
        (item,) = (item for item in response["output"] if item["type"] == "function_call")
        assert (item.get("namespace"), item["name"]) == (namespace, name)
        assert json.loads(item["arguments"]) == {"target": "a"}
    assert any("web_search" in warning for warning in whole["warnings"])


def test_nothing_personal_is_kept() -> None:
    """Neither a path nor a session; no long text but our own."""
    for name, record in RECORDS.items():
        text = json.dumps(record)
        assert not re.search(r"/(tmp|home|root)/|hostname", text), name
    assert set(RECORDS) >= set(ANSWERED)
