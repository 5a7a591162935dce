"""`inspect`: sizes, histograms and oddities, against slow counts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.inspect import Histograms, count_tensor, find_odd_config, find_odd_scales, inspect
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.spec import FULL, GPT_OSS_20B

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    "path", ["checkpoints/tiny/original", "checkpoints/tiny/hf-mxfp4", "gguf/gguf/tiny-mxfp4.gguf"]
)
def test_histograms_equal_a_slow_count(path: str) -> None:
    c = open_checkpoint(DATA / path)
    for name in ("layers.0.experts.gate_up.weight", "layers.3.experts.down.weight"):
        blocks, scales = c.mxfp4(name)
        largest = np.maximum(blocks & 7, (blocks >> 4) & 7).max(axis=-1)
        got = count_tensor(c, name)
        assert np.array_equal(got[0], np.bincount(scales.reshape(-1), minlength=256))
        assert np.array_equal(got[1], np.bincount(largest.reshape(-1), minlength=8))


def test_inspection_of_gold() -> None:
    steps: list[tuple[int, int]] = []
    report = inspect(
        open_checkpoint(DATA / "checkpoints" / "tiny" / "hf-mxfp4"),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert len(steps) == 8 and steps[-1] == (report.parts["expert weights"].nbytes,) * 2
    assert report.histograms and report.histograms.blocks == 18432
    assert sum(p.tensors for p in report.parts.values()) == 71 and report.parts["expert weights"].encodings == ["mxfp4"]
    assert (
        sum(p.parameters for p in report.parts.values())
        == report.parameters
        == open_checkpoint(DATA / "checkpoints/tiny/original").config.parameters()[0]
    )
    assert sum(p.nbytes for p in report.parts.values()) == 953_920
    assert "no tokenizer.json in the folder" in report.oddities
    assert json.loads(json.dumps(report.as_dict()))["kind"] == "hf-mxfp4"


def test_a_dense_checkpoint_has_no_histograms() -> None:
    report = inspect(open_checkpoint(DATA / "gguf" / "src" / "tiny-bf16"))
    assert report.histograms is None and report.chat_template and len(report.tokenizer) == 4


def test_the_licence_is_shown(tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "gguf" / "src" / "tiny-bf16", tmp_path / "c", copy_function=shutil.copyfile)
    assert inspect(open_checkpoint(folder)).license is None
    (folder / "LICENSE").write_text("\n   Apache License\n   Version 2.0\n")
    assert inspect(open_checkpoint(folder)).license == "Apache License"


def test_oddities() -> None:
    plain = dataclasses.replace(GPT_OSS_20B, yarn_truncate=True)
    assert find_odd_config(plain, Kind.GGUF) == []
    odd = dataclasses.replace(plain, layer_types=(FULL,) * 24, swiglu_limit=6.0, swiglu_alpha=1.0, rms_norm_eps=1e-6)
    assert [line.split()[0] for line in find_odd_config(odd, Kind.GGUF)] == [
        "layer_types",
        "swiglu_limit",
        "swiglu_alpha",
        "rms_norm_eps",
    ]
    assert "llama.cpp rounds" in find_odd_config(GPT_OSS_20B, Kind.HF_MXFP4)[0]
    assert find_odd_scales(Histograms({120: 5}, {6.0: 5})) == []
    assert len(find_odd_scales(Histograms({255: 1, 254: 2, 3: 1}, {6.0: 4}))) == 3
