"""Hub repositories: the real huggingface_hub against a small hub on loopback, each case in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gptoss_adapters.checkpoint.formats.hub import file_hash, resolve_path, wanted_files
from gptoss_adapters.errors import BadInput, UsageError

GOLD = Path(__file__).parents[2] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"
REPO, COMMIT = "someone/tiny-gpt-oss", "c" * 40
OPEN = (
    "import sys; from gptoss_adapters.checkpoint import open_checkpoint; c = open_checkpoint(sys.argv[1]); "
    "print(c.kind, len(c.tensors), c.path)"
)


class Hub:
    """The few addresses of the Hub that huggingface_hub asks for. `files` holds what is served, `stated` the hashes
    it claims.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.stated = {
            name: hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_hash(data)
            for name, data in files.items()
        }
        self.requests: list[str] = []
        self.break_off_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, r: BaseHTTPRequestHandler, body: bool) -> None:
        path = r.path.partition("?")[0]
        self.requests.append(
            f"{r.command} {path} {r.headers.get('Range', '')} {r.headers.get('Authorization', '')}".rstrip()
        )
        if path.startswith(f"/api/models/{REPO}"):
            answer = self.tree() if "/tree/" in path else self.info()
            self.send(r, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
            return
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in self.files:
            self.send(r, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            return
        data, headers = (
            self.files[name],
            {"ETag": f'"{self.stated[name]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
        )
        begin = int(r.headers["Range"].removeprefix("bytes=").partition("-")[0]) if r.headers.get("Range") else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.send(r, 206 if begin else 200, data[begin:], headers, body)

    def send(self, r: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        r.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            r.send_header(key, value)
        r.end_headers()
        if body and self.break_off_after is not None and len(data) > self.break_off_after:
            r.wfile.write(data[: self.break_off_after])
            r.wfile.flush()
            r.connection.close()
            self.break_off_after = None
        elif body:
            r.wfile.write(data)

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": self.stated[name][:40]}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": self.stated[name], "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": REPO,
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def tree(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": s["rfilename"],
                "size": s["size"],
                "oid": s["blobId"],
                **({"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 130}} if "lfs" in s else {}),
            }
            for s in self.info()["siblings"]
        ]


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {p.name: p.read_bytes() for p in sorted(GOLD.iterdir())}
    hub = Hub(
        files
        | {"pytorch_model.bin": b"\x80\x02", "original/model.safetensors": b"other folder", "README.md": b"# tiny"}
    )
    yield hub
    hub.server.shutdown()


def run(hub: Hub, home: Path, target: str = REPO, **more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", OPEN, target], env=env | more, capture_output=True, text=True, timeout=120
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_a_repository_opens(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, HF_TOKEN="hf_secret")
    assert done.stdout.startswith("hf-mxfp4 71 "), done.stderr
    fetched = {
        line.split()[1].rpartition("/")[2] for line in hub.requests if line.startswith("GET") and "/resolve/" in line
    }
    assert fetched == {"config.json", "model.safetensors", "README.md"}  # neither the pickle, nor the other folder
    assert any("Bearer hf_secret" in line for line in hub.requests)
    assert all(f"/resolve/{COMMIT}/" in line for line in hub.requests if "/resolve/" in line)  # pinned to the commit


def test_wrong_bytes_of_the_right_size_are_refused(hub: Hub, tmp_path: Path) -> None:
    data = bytearray(hub.files["model.safetensors"])
    data[-1] ^= 1
    hub.files["model.safetensors"] = bytes(data)
    done = run(hub, tmp_path)
    assert done.returncode and "contents are not those that the Hub states" in last_line(done)
    assert f"{REPO}/model.safetensors" in last_line(done) and hub.stated["model.safetensors"] in last_line(done)


def test_wrong_bytes_of_a_small_file_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["config.json"] = hub.files["config.json"].replace(b'"swiglu_limit": 7.0', b'"swiglu_limit": 8.0')
    done = run(hub, tmp_path)
    assert done.returncode and f"{REPO}/config.json" in last_line(done)


def test_offline_uses_the_cache_and_still_verifies(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path).returncode == 0
    hub.requests.clear()
    assert run(hub, tmp_path, HF_HUB_OFFLINE="1").stdout.startswith("hf-mxfp4 71")
    assert hub.requests == []
    (blob,) = (tmp_path / "hf").rglob(hub.stated["model.safetensors"])
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    assert "contents are not those" in last_line(run(hub, tmp_path, HF_HUB_OFFLINE="1"))


def test_offline_without_a_cache_says_so(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "BadInput" in last_line(done) and "not in the local cache" in last_line(done) and not hub.requests


def test_an_interrupted_download_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.files["tokenizer.json"] = b" " * 25_000_000  # huggingface_hub writes, and so resumes, in steps of 10 MB
    hub.stated["tokenizer.json"] = git_hash(hub.files["tokenizer.json"])
    hub.break_off_after = 15_000_000
    done = run(hub, tmp_path)
    if done.returncode:  # some versions of huggingface_hub resume by themselves
        assert "OutputError" in last_line(done) and "resume" in last_line(done)
        done = run(hub, tmp_path)
    assert done.stdout.startswith("hf-mxfp4 71"), done.stderr
    assert any("bytes=" in line for line in hub.requests)


def test_unknown_repository(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "someone/else")
    assert "BadInput: someone/else: no such file, folder or Hub repository" in last_line(done)


def test_hub_unreachable(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert (
        done.returncode
        and "OutputError" in last_line(done)
        and "no such file or folder here, and the Hub cannot be reached" in last_line(done)
    )


def test_paths_come_before_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openai" / "gpt-oss-20b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("openai/gpt-oss-20b") == Path("openai/gpt-oss-20b")
    for nothing in ("./nowhere", "/nowhere/at/all", "nowhere", "a b/c", "../x/y"):
        with pytest.raises(BadInput, match="no such file or folder"):
            resolve_path(nothing)
    with pytest.raises(UsageError, match="a path is empty"):  # Path("") is the current folder
        resolve_path("")


def test_what_is_fetched() -> None:
    published = [
        "config.json",
        "model-00000-of-00001.safetensors",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "original/config.json",
        "original/model.safetensors",
        "metal/model.bin",
        "USAGE_POLICY",
        "LICENSE",
    ]
    assert wanted_files(published, "", REPO) == [*published[:5], "LICENSE"]
    assert wanted_files(published, "original", REPO) == ["original/config.json", "original/model.safetensors"]
    assert wanted_files(["a-F16.gguf", "b.gguf", "config.json"], "b.gguf", REPO) == ["b.gguf", "config.json"]
    assert wanted_files(["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"], "", REPO) == [
        "x-00001-of-00002.gguf",
        "x-00002-of-00002.gguf",
    ]
    with pytest.raises(BadInput, match="unclear"):
        wanted_files(["a-F16.gguf", "b.gguf"], "", REPO)
    with pytest.raises(BadInput, match="no safetensors or GGUF"):
        wanted_files(["pytorch_model.bin", "config.json"], "", REPO)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert file_hash(tmp_path / "x", "git") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object`
    assert file_hash(tmp_path / "x", "sha256") == hashlib.sha256(b"hello\n").hexdigest()


@pytest.mark.parametrize("revision", ["../..", "/etc", "a/../../../b"])
def test_a_revision_does_not_leave_the_cache(revision: str) -> None:
    from gptoss_adapters.checkpoint.formats.hub import _cached

    with pytest.raises(BadInput, match="not a branch, tag or commit"):
        _cached("owner/name", revision)
