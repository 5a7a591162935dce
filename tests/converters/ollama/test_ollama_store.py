"""`to-ollama --store`: the layout of Ollama's model store, by its digests alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from gptoss_converters.ollama.prompt import read_harmony_template
from gptoss_converters.ollama.store import CONFIG, MANIFEST, check_store, format_count, write_store
from test_to_ollama import SOURCE, export, run

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.errors import BadInput, CheckFailed


def stored(tmp_path: Path, **options: object) -> tuple[Path, Path, bytes]:
    model = export(tmp_path / "out", num_ctx=64, **options)
    data = model.files[0].read_bytes()
    return (
        tmp_path / "store",
        write_store(tmp_path / "store", model.name, model.files[0], model.parts, open_checkpoint(SOURCE)),
        data,
    )


def test_manifest_and_blobs(tmp_path: Path) -> None:
    store, manifest, gguf = stored(tmp_path, name="my-tune:v1", system="S", messages=(("user", "hi"),))
    assert manifest == store / "manifests" / "registry.ollama.ai" / "library" / "my-tune" / "v1"
    found = json.loads(manifest.read_text())
    assert (found["schemaVersion"], found["mediaType"], found["config"]["mediaType"]) == (2, MANIFEST, CONFIG)
    contents = {}
    for layer in [found["config"], *found["layers"]]:
        data = (store / "blobs" / layer["digest"].replace(":", "-")).read_bytes()
        assert layer["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}" and layer["size"] == len(data)
        contents[layer["mediaType"].rpartition(".")[2]] = data
    assert list(contents)[1:] == ["model", "template", "system", "params", "messages"]
    assert (
        contents["model"] == gguf
        and contents["template"].decode() == read_harmony_template()
        and contents["system"] == b"S"
    )
    assert json.loads(contents["params"]) == {
        "num_ctx": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "stop": ["<|return|>", "<|call|>"],
    }
    assert json.loads(contents["messages"]) == [{"role": "user", "content": "hi"}]
    config = json.loads(contents["v1+json"])
    assert (
        config["model_format"] == "gguf" and config["model_family"] == "gpt-oss" and config["file_type"] == "MXFP4_MOE"
    )
    assert (
        config["rootfs"]["diff_ids"] == [layer["digest"] for layer in found["layers"]]
        and config["requires"] == "0.30.0"
    )
    assert {p.name for p in (store / "blobs").iterdir()} == {
        layer["digest"].replace(":", "-") for layer in [found["config"], *found["layers"]]
    }
    assert check_store(store, manifest) == found


def test_damage_is_found(tmp_path: Path) -> None:
    store, manifest, _ = stored(tmp_path)
    blob = max((store / "blobs").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(CheckFailed, match="do not have the digest"):
        check_store(store, manifest)
    blob.unlink()
    with pytest.raises(CheckFailed, match="missing or has another size"):
        check_store(store, manifest)
    manifest.write_text("{}")
    with pytest.raises(CheckFailed, match="is no manifest"):
        check_store(store, manifest)


def test_names_stay_in_the_store(tmp_path: Path) -> None:
    model = export(tmp_path / "out", num_ctx=64)
    with pytest.raises(BadInput, match="no folders"):
        write_store(tmp_path / "store", "../x", model.files[0], model.parts, open_checkpoint(SOURCE))


def test_the_command(tmp_path: Path) -> None:
    done = run("to-ollama", SOURCE, "-o", tmp_path / "out", "--store", tmp_path / "store", "--num-ctx", 64)
    assert done.returncode == 0, done.stderr
    manifest = tmp_path / "store" / "manifests" / "registry.ollama.ai" / "library" / "tiny-mxfp4" / "latest"
    assert check_store(tmp_path / "store", manifest) and not (tmp_path / "out").exists()
    again = run("to-ollama", SOURCE, "-o", tmp_path / "out", "--store", tmp_path / "store", "--num-ctx", 64)
    assert again.returncode == 0 and len(list((tmp_path / "store" / "blobs").iterdir())) == 4
    assert (
        run(
            "to-ollama", SOURCE, "-o", tmp_path / "out", "--store", tmp_path / "store", "--create", "http://x"
        ).returncode
        == 2
    )


def test_numbers_of_parameters_read_as_ollama_writes_them() -> None:
    numbers = {999: "999", 1000: "1K", 26_438_656: "26.44M", 7_000_000: "7M", 2_800_000_000: "2.8B", 10**9: "1B"}
    assert {number: format_count(number) for number in numbers} == numbers
