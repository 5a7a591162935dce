"""Seed-made checkpoints: the published files to the byte count, the same bytes everywhere, readable by every reader."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.synthetic.checkpoints import KINDS, ODD_SHAPE, SeedMade, plan_new, weights
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import OutputError, UsageError
from gptoss_adapters.spec import GPT_OSS_20B

ODD_SHA256 = "7e837c37418d89303521a5ad92ae3bd166d081d28fb32b179e4080e2da5ee404"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("odd")
    for kind in KINDS:
        write(plan_new("odd-shape", root / kind, kind=kind), threads=2)
    return {kind: open_checkpoint(root / kind) for kind in KINDS}


def test_odd_shape_is_odd() -> None:
    c = ODD_SHAPE.validate()
    assert c.hidden_size != c.intermediate_size and c.head_dim == 32
    for size in (c.hidden_size, c.intermediate_size):
        assert size % 32 == 0 and size & (size - 1)
    assert c.num_experts & (c.num_experts - 1) and len({c.q_rows, c.kv_rows, c.hidden_size, c.intermediate_size}) == 4


def test_bytes_never_change(odd: dict[str, Checkpoint]) -> None:
    assert hashlib.sha256((odd["hf-mxfp4"].path / "model.safetensors").read_bytes()).hexdigest() == ODD_SHA256


def test_the_three_layouts_hold_the_same_model(odd: dict[str, Checkpoint]) -> None:
    assert {k: c.kind for k, c in odd.items()} == {k: k for k in KINDS}
    assert compare(odd["hf-mxfp4"], odd["openai"]).counts["BYTES EQUAL"] == 17 * 3 + 3
    report = compare(odd["hf-mxfp4"], odd["hf-bf16"])
    assert report.ok and report.counts["VALUES EQUAL"] == 2 * 3 and report.counts["BYTES EQUAL"] == 15 * 3 + 3


def test_values_are_finite_and_scales_vary(odd: dict[str, Checkpoint]) -> None:
    c = odd["hf-mxfp4"]
    for name in c.tensors:
        c.check(name)
    assert len(np.unique(c.mxfp4("layers.1.experts.gate_up.weight")[1])) == 7
    assert c.read("layers.0.sinks").std() > 0.1 and c.read("norm.weight").mean() == pytest.approx(1, abs=0.1)


def test_the_safetensors_library_reads_them(odd: dict[str, Checkpoint]) -> None:
    for c in odd.values():
        (file,) = c.stored.values()
        with safe_open(file.path, "numpy" if c.kind != "hf-bf16" else "pt") as f:
            assert set(f.keys()) == set(file.tensors)  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [1, 3])
def test_any_thread_count_gives_the_same_bytes(tmp_path: Path, odd: dict[str, Checkpoint], threads: int) -> None:
    write(plan_new("odd-shape", tmp_path / "x"), threads=threads)
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == (
        odd["hf-mxfp4"].path / "model.safetensors"
    ).read_bytes()


def test_rows_do_not_depend_on_how_they_are_asked_for() -> None:
    made = SeedMade(GPT_OSS_20B, 3)
    for name, what in (
        ("layers.5.experts.down.weight", "blocks"),
        ("layers.5.experts.down.weight", "scales"),
        ("embedding.weight", "dense"),
    ):
        whole = made.rows(name, what, 0, 9000)
        assert np.array_equal(made.rows(name, what, 4321, 4323), whole[4321:4323])
        assert not np.array_equal(whole, SeedMade(GPT_OSS_20B, 4).rows(name, what, 0, 9000))


def test_20b_shape_has_the_published_sizes(tmp_path: Path) -> None:
    sizes = {f.path.name: f.size for f in plan_new("20b-shape", tmp_path).files}
    assert abs(sizes.pop("tokenizer.json") - 27_868_174) < 10  # the added tokens' names differ by a few characters
    assert sizes == {
        "model-00000-of-00002.safetensors": 4_792_272_488,
        "model-00001-of-00002.safetensors": 4_798_702_184,
        "model-00002-of-00002.safetensors": 4_170_342_232,
        "model.safetensors.index.json": 36_355,
        "config.json": 1806,
        "generation_config.json": 177,
        "tokenizer_config.json": 4200,
        "special_tokens_map.json": 98,
        "chat_template.jinja": 16_738,
    }


def test_20b_shape_in_openai_layout_has_the_published_sizes(tmp_path: Path) -> None:
    sizes = {f.path.name: f.size for f in plan_new("20b-shape", tmp_path, kind="openai").files}
    assert (sizes["model.safetensors"], sizes["config.json"], sizes["dtypes.json"]) == (13_761_300_984, 376, 13_082)


def test_120b_shape_plan(tmp_path: Path) -> None:
    plan = plan_new("120b-shape", tmp_path)
    assert sum(t.nbytes for f in plan.files for t in f.tensors) == 65_248_815_744
    assert sum(len(f.tensors) for f in plan.files) == 687
    assert [f.path.name for f in plan.files][14] == "model-00014-of-00014.safetensors"  # fifteen shards, as published


def test_zero_based_shards_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_adapters.checkpoint.formats.shards.MAX_SHARD_BYTES", 600_000)
    write(plan_new("odd-shape", tmp_path / "x"))
    c = open_checkpoint(tmp_path / "x")
    assert [f.name for f in c.stored] == [f"model-0000{i}-of-00003.safetensors" for i in range(4)]
    assert (
        json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())["metadata"]["total_size"] > 1_500_000
    )


def test_other_weights_in_the_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(plan_new("odd-shape", tmp_path, kind="openai", seed=1))
    monkeypatch.setattr("gptoss_adapters.checkpoint.formats.shards.MAX_SHARD_BYTES", 600_000)
    with pytest.raises(OutputError, match=r"model.safetensors: holds or lists other weights"):
        plan_new("odd-shape", tmp_path, seed=2)
    (tmp_path / "model.safetensors").unlink()
    write(plan_new("odd-shape", tmp_path, seed=2), force=True)
    assert open_checkpoint(tmp_path).kind == "hf-mxfp4"
    monkeypatch.undo()
    with pytest.raises(OutputError, match=r"model-00000-of-00003.safetensors: holds"):
        plan_new("odd-shape", tmp_path)


def test_layers_cut() -> None:
    assert weights("120b-shape", layers=2).config.num_hidden_layers == 2
    for wrong in (0, 37):
        with pytest.raises(UsageError, match="1 to 36"):
            weights("120b-shape", layers=wrong)
    with pytest.raises(UsageError, match="odd-shape"):
        weights("21b-shape")
