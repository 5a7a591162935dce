"""`to-ollama --create` against a server that speaks Ollama's API and fails in every way."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gptoss_converters.ollama.prompt import read_harmony_template
from gptoss_converters.ollama.server import Server, create_model
from gptoss_converters.ollama.store import hash_file
from gptoss_converters.ollama.to_ollama import OllamaModel, make_request
from helpers.fake_ollama import FakeOllama, fake_ollama
from test_to_ollama import SOURCE, export, run

from gptoss_adapters.errors import BadInput, CheckFailed, GptOssError, OutputError, UsageError


@pytest.fixture
def server() -> Iterator[FakeOllama]:
    with fake_ollama() as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OllamaModel:
    return export(tmp_path_factory.mktemp("out"), name="tune", num_ctx=64)


def make(server: FakeOllama, exported: OllamaModel, **changes: str) -> list[str]:
    digests = {file.name: f"sha256:{hash_file(file)}" for file in exported.files}
    return create_model(server.url, exported.files, {**make_request(exported, digests), **changes})


def test_upload_and_create(server: FakeOllama, model: OllamaModel) -> None:
    steps: list[tuple[str, int, int]] = []
    size = model.files[0].stat().st_size
    digest = hash_file(model.files[0], lambda *step: steps.append(step))
    request = make_request(model, {model.files[0].name: f"sha256:{digest}"})
    said = create_model(server.url, model.files, request, lambda *step: steps.append(step))
    assert said[-1] == "success" and ("upload", size, size) in steps and ("hash", size, size) in steps
    assert list(server.blobs.values()) == [model.files[0].read_bytes()]
    made = server.models["tune"]
    assert made["files"] == {"tune.gguf": next(iter(server.blobs))} and made["template"] == read_harmony_template()
    assert made["parameters"]["stop"] == ["<|return|>", "<|call|>"] and made["requires"] == "0.30.0"


def test_what_is_there_is_not_sent_again(server: FakeOllama, model: OllamaModel) -> None:
    make(server, model)
    server.asked.clear()
    make(server, model)
    assert server.paths("POST") == ["/api/create"]


@pytest.mark.parametrize(
    "fault,error,text",
    [
        ("500", OutputError, "no space left on device|broke off"),
        ("disconnect", OutputError, "broke off"),
        ("mismatch", CheckFailed, "other bytes than were sent: digest mismatch"),
        ("lose", CheckFailed, "does not have the file"),
    ],
)
def test_faults_of_an_upload_and_the_next_run(
    server: FakeOllama, model: OllamaModel, fault: str, error: type[GptOssError], text: str
) -> None:
    server.faults.append(fault)
    with pytest.raises(error, match=text) as caught:
        make(server, model)
    assert "\n" not in str(caught.value) and not server.models
    assert make(server, model)[-1] == "success"


def test_a_split_upload_goes_on_where_it_was_cut_off(server: FakeOllama, tmp_path: Path) -> None:
    from gptoss_converters.gguf.to_gguf import GgufOptions

    model = export(tmp_path, GgufOptions(split_max_size=300_000), name="s", num_ctx=64)
    server.faults += ["", "disconnect"]
    with pytest.raises(OutputError):
        make(server, model)
    assert len(server.blobs) == 1
    server.asked.clear()
    assert make(server, model)[-1] == "success"
    assert len(server.paths("POST")) == 3 and len(server.models["s"]["files"]) == 3


def test_a_refused_model(server: FakeOllama, model: OllamaModel) -> None:
    with pytest.raises(BadInput, match="Ollama refused the model: failed to validate GGUF"):
        make(server, model, model="bad")
    with pytest.raises(OutputError, match="did not finish"):
        make(server, model, model="cut")


def test_no_server(model: OllamaModel) -> None:
    with pytest.raises(OutputError, match=r"broke off: .*refused.*is it running"):
        create_model("http://127.0.0.1:9", model.files, make_request(model, {model.files[0].name: "sha256:0"}))
    with pytest.raises(OutputError, match="is no Ollama server"), page() as url:
        Server(url).check()
    with pytest.raises(UsageError, match="takes the URL"):
        Server("file:///etc/passwd")


@contextmanager
def page() -> Iterator[str]:
    """Some web server that is none of Ollama's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def command(out: Path, url: str, *more: object) -> subprocess.CompletedProcess[str]:
    return run("to-ollama", SOURCE, "-o", out, "--num-ctx", 64, "--name", "tune:v2", "--create", url, *more)


def test_the_command(server: FakeOllama, tmp_path: Path) -> None:
    done = command(tmp_path / "out", server.url)
    assert done.returncode == 0 and "ollama run tune:v2" in done.stdout and "tune:v2" in server.models
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Modelfile", "README.md", "tune-v2.gguf"]


def test_no_server_no_conversion(tmp_path: Path) -> None:
    failed = command(tmp_path / "out", "http://127.0.0.1:9")
    assert failed.returncode == 4 and not (tmp_path / "out").exists()
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: http://127.0.0.1:9: the Ollama server broke off")


def test_the_same_command_goes_on_where_an_upload_broke_off(server: FakeOllama, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.faults.append("disconnect")
    failed = command(out, server.url)
    last = failed.stderr.splitlines()[-1]
    assert failed.returncode == 4 and last.startswith("error: http") and "run the same command again" in last
    before = (out / "tune-v2.gguf").stat()
    done = command(out, server.url, "--json")
    after = (out / "tune-v2.gguf").stat()
    assert done.returncode == 0 and "tune:v2" in server.models, done.stderr
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert json.loads(done.stdout)["resumed"] == json.loads(done.stdout)["nbytes"] == after.st_size
    assert sorted(p.name for p in out.iterdir()) == ["Modelfile", "README.md", "tune-v2.gguf"]


def test_going_on_trusts_no_byte(server: FakeOllama, tmp_path: Path) -> None:
    """A model file that was changed after the upload broke off is not sent; another plan is another model."""
    out = tmp_path / "out"
    server.faults.append("disconnect")
    command(out, server.url)
    good = (out / "tune-v2.gguf").read_bytes()
    (out / "tune-v2.gguf").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused = command(out, server.url)
    assert refused.returncode == 4 and "exists already: add --force" in refused.stderr and not server.models
    assert command(out, server.url, "--force").returncode == 0
    assert list(server.blobs.values()) == [good]
    server.faults.append("disconnect")
    server.blobs.clear()
    command(out, server.url, "--force")
    other = command(out, server.url, "--dense", "f32")
    assert other.returncode == 4 and "exists already: add --force" in other.stderr


def test_the_ollama_client_reads_it_back(server: FakeOllama, model: OllamaModel) -> None:
    import ollama

    make(server, model)
    client = ollama.Client(server.url)
    assert [m.model for m in client.list().models] == ["tune"]
    shown = client.show("tune")
    assert shown.template == read_harmony_template() and "thinking" in (shown.capabilities or [])
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("nothing")
