"""`open_checkpoint` on the gold checkpoints: the three safetensors kinds hold the same model, read lazily and
exactly.
"""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from gptoss_adapters.checkpoint import Checkpoint, open_checkpoint

GOLD = Path(__file__).parents[1] / "data" / "checkpoints"
KINDS = {"original": "openai", "hf-mxfp4": "hf-mxfp4", "hf-bf16": "hf-bf16"}


@pytest.fixture(scope="module", params=["tiny", "tiny-margin"])
def three(request: pytest.FixtureRequest) -> dict[str, Checkpoint]:
    return {kind: open_checkpoint(GOLD / request.param / folder) for folder, kind in KINDS.items()}


def test_kind_and_names(three: dict[str, Checkpoint]) -> None:
    for kind, c in three.items():
        assert c.kind == kind
        assert list(c.tensors) == list(three["openai"].tensors) and len(c.tensors) == 17 * 4 + 3
        assert c.config.hidden_size == 96 and c.config.intermediate_size == 64


def test_all_kinds_hold_the_same_values(three: dict[str, Checkpoint]) -> None:
    for name, info in three["openai"].tensors.items():
        values = [c.read(name) for c in three.values()]
        assert values[0].shape == info.shape and values[0].dtype == np.float32
        assert all(np.array_equal(values[0], v) for v in values[1:]), name


def test_mxfp4_bytes_are_the_stored_ones(three: dict[str, Checkpoint]) -> None:
    for kind, names in (("openai", "block.2.mlp.mlp1_weight"), ("hf-mxfp4", "model.layers.2.mlp.experts.gate_up_proj")):
        c, glue = three[kind], "." if kind == "openai" else "_"
        with safe_open(next(iter(c.stored)), "numpy") as f:
            blocks, scales = c.mxfp4("layers.2.experts.gate_up.weight")
            assert np.array_equal(blocks, f.get_tensor(f"{names}{glue}blocks"))
            assert np.array_equal(scales, f.get_tensor(f"{names}{glue}scales"))


def test_one_expert_is_a_slice_of_the_whole(three: dict[str, Checkpoint]) -> None:
    for c in three.values():
        for name in (
            "layers.1.experts.gate_up.weight",
            "layers.1.experts.down.weight",
            "layers.1.experts.gate_up.bias",
        ):
            assert np.array_equal(c.read(name, expert=5), c.read(name)[5])
    blocks, scales = three["openai"].expert("layers.1.experts.down.weight", 5)
    assert blocks.shape == (96, 2, 16) and scales.shape == (96, 2)
    assert three["hf-bf16"].expert("layers.1.experts.down.weight", 5).shape == (96, 64)


def test_dense_tensors_are_views(three: dict[str, Checkpoint]) -> None:
    for kind, c in three.items():
        for name in (
            "layers.0.k_proj.weight",
            "embedding.weight",
            *(["layers.0.experts.down.weight"] if kind == "hf-bf16" else []),
        ):
            array = c.array(name)
            assert array.dtype == ml_dtypes.bfloat16 and not array.flags.writeable and not array.flags.owndata
            assert any(np.may_share_memory(array, f.data) for f in c.stored.values())


def test_sources_point_at_the_bytes(three: dict[str, Checkpoint]) -> None:
    for c in three.values():
        info = c.tensors["norm.weight"]
        (source,) = info.sources
        assert source.file.read_bytes()[source.offset :][: source.nbytes] == c.array("norm.weight").tobytes()
        assert info.nbytes == 192


def test_array_of_mxfp4_says_what_to_do(three: dict[str, Checkpoint]) -> None:
    with pytest.raises(TypeError, match="read\\(\\)"):
        three["openai"].array("layers.0.experts.down.weight")
    with pytest.raises(TypeError, match="bf16"):
        three["openai"].mxfp4("norm.weight")


def test_companions() -> None:
    c = open_checkpoint(GOLD.parent / "gguf" / "src" / "tiny-mxfp4")
    assert set(c.tokenizer_files) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    assert c.chat_template is not None and len(c.chat_template.encode()) == 16738
    assert c.generation_config is not None and c.generation_config["eos_token_id"] == [484, 481, 494]
    assert c.oddities == ()


def test_a_single_file_opens_like_its_folder(tmp_path: Path) -> None:
    shutil.copytree(GOLD / "tiny" / "original", tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "x" / "odd-name.safetensors")
    by_file, by_folder = open_checkpoint(tmp_path / "x" / "odd-name.safetensors"), open_checkpoint(tmp_path / "x")
    assert by_file.kind == by_folder.kind == "openai"
    assert np.array_equal(by_file.read("norm.weight"), by_folder.read("norm.weight"))


def test_stale_quantization_config_is_reported_not_believed(tmp_path: Path) -> None:
    shutil.copytree(GOLD / "tiny" / "hf-bf16", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "mxfp4"}
    }
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    c = open_checkpoint(tmp_path / "x")
    assert c.kind == "hf-bf16" and any("stale" in o for o in c.oddities)
