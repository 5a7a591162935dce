"""Every kind of input gives the same canonical tensors as the checkpoint that it was made from, by bytes, whole and
expert by expert.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.blobs import write_blob
from helpers.crafted import GOLD, with_config
from helpers.kinds import DENSE_KINDS, MXFP4_KINDS, save, write_kind

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.formats.ollama import find_in_store
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput

MXFP4, BF16 = GOLD / "src" / "tiny-mxfp4", GOLD / "src" / "tiny-bf16"
BLOBS = {
    "split": {},
    "old type": {"old_type": True},
    "fused": {"fused": True},
    "fused, old type": {"fused": True, "old_type": True},
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "c"
    write(plan_new("odd-shape", folder), sync=False, read_back=False)
    return folder


def assert_same(made: Checkpoint, source: Checkpoint) -> None:
    """By the comparer, and here: every tensor, whole and one expert at a time."""
    report = compare(source, made)
    assert report.counts["BYTES EQUAL"] == len(source.tensors) and report.ok, [
        r for r in report.results if r.verdict != "BYTES EQUAL"
    ][:2]
    for name, info in source.tensors.items():
        whole = made.read(name, np.float32)
        assert whole.tobytes() == source.read(name, np.float32).tobytes(), name
        if len(info.shape) == 3 or name.endswith("experts.down.bias"):
            for e in range(info.shape[0]):
                assert made.read(name, np.float32, expert=e).tobytes() == whole[e].tobytes()
        if info.encoding == "mxfp4":
            for ours, theirs in zip(made.mxfp4(name, 1), source.mxfp4(name, 1), strict=True):
                assert np.array_equal(ours, theirs)
        made.check(name)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", MXFP4_KINDS + DENSE_KINDS)
def test_safetensors_kinds(kind: str, shards: int, odd: Path, tmp_path: Path) -> None:
    sources = [odd, MXFP4] if kind in MXFP4_KINDS else [BF16]
    for n, source in enumerate(sources):
        made = open_checkpoint(write_kind(source, kind, tmp_path / str(n), shards=shards, spelling=5 if n else 4))
        assert made.kind == kind
        assert_same(made, open_checkpoint(source))


@pytest.mark.parametrize("name", BLOBS)
def test_ollama_blobs(name: str, odd: Path, tmp_path: Path) -> None:
    for n, source in enumerate((odd, MXFP4)):
        made, original = (
            open_checkpoint(write_blob(source, tmp_path / f"{n}.gguf", **BLOBS[name])),
            open_checkpoint(source),
        )
        assert made.kind == "ollama" and made.config.uses_yarn and any("Ollama" in o for o in made.oddities)
        assert_same(made, original)


def test_a_name_in_ollamas_store(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = write_blob(odd, tmp_path / "blob")
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    (tmp_path / "blobs").mkdir()
    stored = blob.rename(tmp_path / "blobs" / f"sha256-{digest}")
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "odd" / "20b"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{d}", "size": 1}
        for kind, d in (("template", "0" * 64), ("model", digest))
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_same(open_checkpoint("ollama:odd:20b"), open_checkpoint(odd))
    with pytest.raises(BadInput, match="no such model in Ollama's store"):
        find_in_store("ollama:odd")
    with pytest.raises(BadInput, match="not a model's name"):
        find_in_store("ollama:../x/../../odd:20b")
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    with pytest.raises(BadInput, match="contents are not"):
        open_checkpoint("ollama:odd:20b")


def test_pruned_experts_are_read_by_the_config(odd: Path, tmp_path: Path) -> None:
    """Fewer experts, router rows cut too; a config that still says the old number is named."""
    folder = write_kind(odd, "hf-mxfp4", tmp_path / "full")
    from helpers.crafted import read_safetensors, write_safetensors

    tensors = read_safetensors(folder / "model.safetensors")
    for name, (dtype, shape, data) in tensors.items():
        if "experts" in name or "router" in name:
            tensors[name] = dtype, [shape[0] - 1, *shape[1:]], data[: len(data) // shape[0] * (shape[0] - 1)]
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(
        BadInput,
        match=r"router\.weight: the router has another number of experts than the config \(expected 5 rows, got 4\)",
    ):
        open_checkpoint(folder)
    pruned = open_checkpoint(with_config(folder, lambda c: c.update(num_local_experts=4)))
    full = open_checkpoint(odd)
    for e in range(4):
        for ours, theirs in zip(
            pruned.mxfp4("layers.1.experts.down.weight", e), full.mxfp4("layers.1.experts.down.weight", e), strict=True
        ):
            assert np.array_equal(ours, theirs)
    with pytest.raises(BadInput, match="experts_per_token exceeds num_experts"):
        open_checkpoint(with_config(folder, lambda c: c.update(num_local_experts=2)))


BAD = {
    "an expert is missing": (
        "hf-defused",
        lambda t: t.pop("model.layers.0.mlp.experts.down_projs.2.weight"),
        r"down_projs\.2\.weight: the tensor is missing",
    ),
    "an expert too many": (
        "hf-quark",
        lambda t: t.update(
            {"model.layers.0.mlp.experts.99.down_proj.weight": t["model.layers.0.mlp.experts.0.down_proj.weight"]}
        ),
        r"experts\.99\.down_proj\.weight: unexpected",
    ),
    "fp8 instead of MXFP4": (
        "hf-quark",
        lambda t: t.update({"model.layers.0.mlp.experts.0.down_proj.weight": np.zeros((96, 64), np.uint8)}),
        "shape does not fit",
    ),
    "bitsandbytes": (
        "hf-defused",
        lambda t: t.update({"model.layers.0.mlp.experts.down_projs.2.weight.absmax": np.zeros(4, np.float32)}),
        "quantised by bitsandbytes.*save the model merged",
    ),
    "NVFP4": (
        "hf-compressed-tensors",
        lambda t: t.update({"model.layers.0.mlp.experts.0.down_proj.weight_global_scale": np.zeros(1, np.float32)}),
        r"quantised by compressed-tensors \(nvfp4\), which is not read",
    ),
    "an adapter among the weights": (
        "hf-defused",
        lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 96), np.float32)}),
        "--lora",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    kind, change, said = BAD[name]
    folder = write_kind(MXFP4 if kind in MXFP4_KINDS else BF16, kind, tmp_path / "c")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save(folder / "model.safetensors", tensors)
    with pytest.raises(BadInput, match=said) as e:
        open_checkpoint(folder)
    assert str(e.value).startswith(str(tmp_path)) and "\n" not in str(e.value)


def test_scale_byte_255_is_refused_in_every_kind(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    for kind, name in (
        ("hf-quark", "model.layers.1.mlp.experts.3.down_proj.weight_scale"),
        ("hf-compressed-tensors", "model.layers.1.mlp.experts.3.up_proj.weight_scale"),
    ):
        folder = write_kind(MXFP4, kind, tmp_path / kind)
        tensors = load_file(folder / "model.safetensors")
        tensors[name][5, 1] = 255
        save(folder / "model.safetensors", tensors)
        c = open_checkpoint(folder)
        with pytest.raises(BadInput, match=rf"{name}: 1 MXFP4 scale bytes are 255"):
            for tensor in c.tensors:
                c.check(tensor)
