"""Hub repositories: the real huggingface_hub against a small hub on loopback, each case in a process of its own."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub_server import COMMIT, REPO, Hub, git_hash

from gptoss_adapters.checkpoint.formats.hub import file_hash, resolve_path, wanted_files
from gptoss_adapters.errors import BadInput, UsageError

GOLD = Path(__file__).parents[2] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"
OPEN = (
    "import sys; from gptoss_adapters.checkpoint import open_checkpoint; c = open_checkpoint(sys.argv[1]); "
    "print(c.kind, len(c.tensors), c.path)"
)


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
