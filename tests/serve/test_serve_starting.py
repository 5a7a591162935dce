"""What the server starts from what its user named: the engine by the file, the context by memory, lines to paste."""

from __future__ import annotations

import json
import shlex
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.serve_fakes import Served

from gptoss_adapters.backends import context
from gptoss_adapters.backends.context import context_bytes, fit_context
from gptoss_adapters.errors import BadInput, UsageError
from gptoss_adapters.reference.loading import plan_memory
from gptoss_adapters.serve import starting
from gptoss_adapters.serve.pasting import lines_to_paste
from gptoss_adapters.serve.starting import plan_start
from gptoss_adapters.spec import GPT_OSS_20B

GIB = 1 << 30
CHECKPOINT: Any = SimpleNamespace(config=GPT_OSS_20B, stored={})
MOST = GPT_OSS_20B.max_position_embeddings


@pytest.mark.parametrize("name", context.SIZED)
@pytest.mark.parametrize("gigabytes", [6, 24, 200])
def test_the_context_is_what_memory_holds(name: str, gigabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "read_free_memory", lambda: gigabytes * GIB)
    monkeypatch.setattr(context, "_weight_bytes", lambda *_: 2 * GIB)
    monkeypatch.setattr(context, "_on_accelerator", lambda *_: False)
    room = 0.9 * gigabytes * GIB - 2 * GIB - (600 << 20)
    fit = fit_context(name, CHECKPOINT, {}, 1)
    assert fit.tokens == MOST or fit.tokens % 256 == 0
    assert context_bytes(name, GPT_OSS_20B, {}, fit.tokens) <= room or "do not hold" in fit.reason
    assert fit.tokens == MOST or context_bytes(name, GPT_OSS_20B, {}, fit.tokens + 256) > room
    assert str(MOST) in fit.reason and ("GB of free memory" in fit.reason) == (fit.tokens < MOST)
    two = fit_context(name, CHECKPOINT, {}, 2)
    assert two.tokens <= fit.tokens


def test_the_least_context_says_that_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "read_free_memory", lambda: GIB)
    fit = fit_context("llama_cpp", CHECKPOINT, {}, 1)
    assert fit.tokens == context.LEAST and "do not hold" in fit.reason
    monkeypatch.setattr(context, "read_free_memory", lambda: None)
    assert fit_context("llama_cpp", CHECKPOINT, {}, 1).tokens == MOST
    assert "accelerator" in fit_context("torch", CHECKPOINT, {"device": "cuda"}, 1).reason


def test_bytes_of_a_context() -> None:
    for tokens in (4096, 32768):
        cache = plan_memory(GPT_OSS_20B, tokens)["kv_cache"]
        assert context_bytes("torch", GPT_OSS_20B, {}, tokens) == pytest.approx(2 * cache, rel=0.001)
        flash: dict[str, Any] = {"flash_attn": True, "cache_type": "f16"}
        whole = 24 * tokens * 2 * 8 * 64 * 2
        assert context_bytes("llama_cpp", GPT_OSS_20B, flash, tokens) == whole
        windowed = 12 * (tokens + 640) * 2 * 8 * 64 * 2
        assert context_bytes("llama_cpp", GPT_OSS_20B, flash | {"swa_full": False}, tokens) == windowed
        assert context_bytes("llama_cpp", GPT_OSS_20B, {"cache_type": "f16"}, tokens) == whole + tokens * 512 * 264


def test_free_memory(tmp_path: Path) -> None:
    assert context._read_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    assert context._read_cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert context._read_cgroup(tmp_path) == 450
    free = context.read_free_memory()
    assert free is not None and free > 1 << 20


# The engine by the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "model", "spec"),
    [
        ({"xllamacpp", "llama_cpp", "torch"}, "pocket.gguf", "llama_server={}"),
        ({"llama_cpp", "torch"}, "pocket.gguf", "llama_cpp={}"),
        ({"torch"}, "pocket", "torch={}"),
        ({"torch"}, "pocket.gguf", "gptoss-adapters[llama-server]"),
        ({"xllamacpp"}, "pocket", "gptoss-adapters[torch]"),
    ],
)
def test_the_engine_by_the_file(
    installed: set[str], model: str, spec: str, pocket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "find_spec", lambda name: name in installed or None)
    path = str(pocket / model)
    if "{}" not in spec:
        with pytest.raises(BadInput) as caught:
            plan_start(path, None, {}, None, 1)
        assert spec in str(caught.value)
        return
    start = plan_start(path, None, {}, None, 1)
    assert start.spec == spec.format(path) and start.options["n_ctx"] > 4096
    assert [event for event, _ in start.said] == ["engine", "context"]


def test_what_is_named_wins(pocket: Path) -> None:
    path = str(pocket / "pocket.gguf")
    assert plan_start(path, "llama_cpp", {"n_threads": 2}, 512, 1) == starting.Start(
        f"llama_cpp={path}", {"n_threads": 2, "n_ctx": 512}
    )
    assert plan_start(None, f"llama_cpp={path}", {"n_ctx": 64}, None, 1).options == {"n_ctx": 64}
    assert plan_start(None, "llama_server=http://localhost:1", {}, None, 1).options == {}
    assert plan_start(None, "ollama=gpt-oss:20b", {}, None, 1).options == {"n_ctx": None}
    assert plan_start(None, "some.module:Class=x", {}, None, 1).options == {}
    assert plan_start(None, "llama_cpp=missing.gguf", {}, None, 1).options == {}  # which the engine says itself
    for wrong in ((None, None, {}, None), (path, f"torch={path}", {}, None), (path, None, {"n_ctx": 1}, 2)):
        with pytest.raises(UsageError):
            plan_start(*wrong, 1)
    with pytest.raises(BadInput, match="no such file"):
        plan_start("missing.gguf", None, {}, None, 1)


@pytest.mark.backend("llama_server")
def test_the_log_says_what_was_chosen(pocket: Path) -> None:
    with Served("llama_server", pocket, "pocket.gguf", "--set", "n_threads=1") as server:
        lines = {line["event"]: line for line in server.lines()}
        assert lines["context"]["tokens"] == lines["listening"]["context"] > 4096
        assert lines["context"]["change"] == "--context TOKENS" and str(MOST) in lines["context"]["why"]
        long = {"messages": [{"role": "user", "content": "word " * 6000}], "max_tokens": 1}
        assert server.http.post("/v1/chat/completions", json=long).status_code == 200


# Lines to paste -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [False, True])
def test_lines_to_paste(key: bool) -> None:
    text = lines_to_paste("http://0.0.0.0:8000/v1", "gpt-oss-20b", 65536, key)
    parts = dict(part.split("\n", 1) for part in text.split("# ")[1:])
    found = {name.split(" (")[0]: body.strip() for name, body in parts.items()}
    codex = tomllib.loads(found["Codex"])
    provider = codex["model_providers"][codex["model_provider"]]
    assert provider["base_url"] == "http://localhost:8000/v1" and provider["wire_api"] == "responses"
    assert codex["model_context_window"] == 65536 and ("env_key" in provider) == key
    opencode = json.loads(found["opencode"])
    assert opencode["model"] == "gptoss/gpt-oss-20b"
    assert opencode["provider"]["gptoss"]["options"]["baseURL"] == "http://localhost:8000/v1"
    shell = f"{found['Claude Code']}\necho $ANTHROPIC_BASE_URL $ANTHROPIC_AUTH_TOKEN $ANTHROPIC_MODEL"
    said = subprocess.run(
        ["bash", "-c", shell], env={"GPTOSS_API_KEY": "sk"}, capture_output=True, text=True, check=True
    ).stdout
    assert shlex.split(said) == ["http://localhost:8000", "sk" if key else "none", "gpt-oss-20b"]
    for name, base in (("OpenAI SDK", "http://localhost:8000/v1"), ("Anthropic SDK", "http://localhost:8000")):
        made: dict[str, Any] = {"os": SimpleNamespace(environ={"GPTOSS_API_KEY": "sk"})}
        exec(found[name], made | {"OpenAI": dict, "Anthropic": dict}, made)
        assert made["client"] == {"base_url": base, "api_key": "sk" if key else "none"}
