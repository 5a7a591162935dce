"""What `to-ollama` exports, in llama.cpp's own server as a process of its own: the server that current Ollama runs.

The binary is a stand-in of a few lines around xllamacpp, which carries llama.cpp's server; it takes llama-server's
options.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions
from gptoss_converters.ollama.prompt import make_prompt
from gptoss_converters.ollama.rules import check
from gptoss_converters.ollama.to_ollama import OllamaModel, OllamaOptions, finish, plan_ollama
from gptoss_harmony import parse, render, render_pieces
from gptoss_harmony.openai.chat_completions import from_messages, to_conversation

from gptoss_adapters.backends import Backend, BackendFailed, open_backend
from gptoss_adapters.backends.llama_http import LlamaClient, Served, start_binary
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput, UsageError

pytestmark = [pytest.mark.backend("llama_server"), pytest.mark.timeout(600)]
WEATHER = json.loads((Path(__file__).parents[2] / "recipes" / "weather_tool.json").read_text())
TOOLS: list[dict[str, Any]] = WEATHER if isinstance(WEATHER, list) else [WEATHER]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}
CALL: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": TOOLS}
SETTINGS = {"n_batch": 512, "n_threads": 1, "cache_type": "f32", "flash_attn": False}
SCRIPT = f"""#!{sys.executable}
import argparse, os, sys, time
parser = argparse.ArgumentParser(allow_abbrev=False)
for option in ("-m", "--host", "-ctk", "-ctv", "-fa"):
    parser.add_argument(option, type=str, required=True)
for option in ("-c", "-np", "--port", "-b", "-ub", "-t", "-tb"):
    parser.add_argument(option, type=int, required=True)
for option in ("--jinja", "--swa-full", "--no-warmup"):
    parser.add_argument(option, action="store_true", required=True)
o = parser.parse_args()
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.port, p.api_keys = o.m, o.c, o.np, o.port, [os.environ["LLAMA_API_KEY"]]
p.n_batch = p.n_ubatch = o.b
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = o.t
p.cache_type_k = p.cache_type_v = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + o.ctk.upper())
p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
p.swa_full, p.warmup, p.fit_params, p.ui, p.use_jinja = True, False, False, False, True
server = xllamacpp.Server(p)
while True:
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket") / "pocket"
    write(plan_new("pocket", folder), threads=2, sync=False)
    return folder


@pytest.fixture(scope="module", params=["harmony", "embedded"])
def model(request: pytest.FixtureRequest, pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> OllamaModel:
    folder = tmp_path_factory.mktemp(request.param)
    made = plan_ollama(open_checkpoint(pocket), folder, GgufOptions(), OllamaOptions(request.param))
    write(made.plan, threads=2, sync=False)
    finish(made)
    return made


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    script = tmp_path_factory.mktemp("bin") / "llama-server"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def served(model: OllamaModel, binary: str) -> Iterator[Served]:
    served = start_binary(binary, str(model.files[0]), 2048, SETTINGS)
    yield served
    served.handle.kill()
    served.handle.wait()


@pytest.fixture(scope="module")
def reference(pocket: Path) -> Iterator[Backend]:
    with open_backend("torch", pocket, truncate=True) as backend:  # llama.cpp rounds the YaRN bounds
        yield backend


def ids_of(request: dict[str, Any]) -> list[int]:
    return render(to_conversation(request, date=date.today().isoformat()), drop="none")


@pytest.mark.parametrize("request_", [CHAT, CALL], ids=["chat", "call"])
def test_an_exported_folder_answers_as_the_reference(
    served: Served, model: OllamaModel, reference: Backend, request_: dict[str, Any]
) -> None:
    assert check(model.folder / "Modelfile") == []
    expected = reference.generate(ids_of(request_), max_tokens=200)
    assert expected.reason == "stop"
    answer = served.client.complete(ids_of(request_), n_predict=200, temperature=0)
    assert answer["tokens"] == expected.ids
    message = from_messages(parse(expected.ids), request_.get("tools"))
    assert message["tool_calls"] if "tools" in request_ else message["content"]


@pytest.mark.parametrize("request_", [CHAT, CALL], ids=["chat", "call"])
def test_the_chat_endpoint_gives_the_same_message(served: Served, reference: Backend, request_: dict[str, Any]) -> None:
    """The embedded mode's way: the server renders by the Jinja template in the GGUF and parses."""
    choice = served.client.chat({**request_, "temperature": 0, "max_tokens": 200})["choices"][0]
    ours = from_messages(parse(reference.generate(ids_of(request_), max_tokens=200).ids), request_.get("tools"))
    said = choice["message"]
    assert (said.get("reasoning_content") or None, said.get("content") or None) == (
        ours["reasoning_content"],
        ours["content"],
    )
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in said.get("tool_calls") or []]
    assert calls == [
        (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in ours.get("tool_calls") or []
    ]
    assert choice["finish_reason"] == ours["finish_reason"]


@pytest.mark.parametrize("request_", [CHAT, CALL], ids=["chat", "call"])
def test_the_go_template_s_prompt_gives_the_same_tokens(
    served: Served, reference: Backend, request_: dict[str, Any]
) -> None:
    """The harmony mode's way: a text rendered by our Go template."""
    text = make_prompt(request_, date.today().isoformat())
    assert served.client.post("/tokenize", {"content": text, "parse_special": True})["tokens"] == ids_of(request_)
    assert (
        served.client.complete([text], n_predict=200, temperature=0)["tokens"]
        == reference.generate(ids_of(request_), max_tokens=200).ids
    )


def test_pieces_are_ids(served: Served) -> None:
    pieces = render_pieces(to_conversation(CALL, date=date.today().isoformat()), drop="none")
    by_pieces, by_ids = (served.client.complete(p, n_predict=20, temperature=0) for p in (pieces, ids_of(CALL)))
    assert by_pieces["tokens"] == by_ids["tokens"] and by_pieces["tokens_evaluated"] == by_ids["tokens_evaluated"]


def test_a_server_at_a_url_is_a_backend(served: Served, reference: Backend) -> None:
    url = f"http://{served.client._at.netloc}"
    key = served.client._headers["Authorization"].removeprefix("Bearer ")
    with open_backend(f"llama_server={url}", api_key=key) as backend:
        assert backend.info.settings == {"url": url} and backend.info.n_ctx == 2048
        ids = ids_of(CHAT)
        got, expected = (b.generate(ids, max_tokens=30, logprobs=2) for b in (backend, reference))
        assert got.ids == expected.ids
        assert (
            max(abs((a.logprob or 0) - (b.logprob or 0)) for a, b in zip(got.tokens, expected.tokens, strict=True))
            < 0.05
        )  # bf16 products of two engines
    with pytest.raises(BackendFailed, match="Invalid API Key"):
        open_backend(f"llama_server={url}", api_key="wrong")


def test_a_binary_is_a_backend(
    binary: str, model: OllamaModel, reference: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(Path(binary).parent), prepend=":")
    with open_backend("llama_server", model.files[0], binary="llama-server") as backend:
        assert backend.generate(ids_of(CHAT), max_tokens=20).ids == reference.generate(ids_of(CHAT), max_tokens=20).ids
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(BadInput, match="refuses the file"):
        open_backend("llama_server", tmp_path / "text.gguf", binary=binary)
    with pytest.raises(BadInput, match="no such llama-server binary"):
        open_backend("llama_server", model.files[0], binary="llama-serfer")


def test_no_server() -> None:
    with pytest.raises(BackendFailed, match="does not answer"):
        LlamaClient("http://127.0.0.1:9").get("/props")
    with pytest.raises(UsageError, match="not the URL"):
        LlamaClient("localhost:8080")
