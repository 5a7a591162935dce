"""The MLX layout, loaded by mlx-lm's own loader on the CPU: the same logits as the reference, and back byte for
byte.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from gptoss_converters.cli.options import rounding_for
from gptoss_converters.to_hf import HfOptions, plan_hf
from gptoss_converters.to_mlx import plan_mlx

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.compare import compare
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import BadInput

TOKENS = np.random.default_rng(0).integers(0, 1000, 40)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rounded YaRN bounds, as mlx-lm always has them: what is left is arithmetic."""
    folder = tmp_path_factory.mktemp("mlx") / "odd"
    write(plan_new("odd-shape", folder), sync=False)
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"]["truncate"] = True
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(source: Path, folder: Path, **options: object) -> Path:
    folder.mkdir()
    checkpoint = open_checkpoint(source)
    write(
        plan_mlx(
            checkpoint,
            folder,
            HfOptions(Kind.MLX, tokenizer="none", **options),
            rounding_for(checkpoint, None, None),
        ).plan,
        sync=False,
    )
    return folder


def mlx_logits(folder: Path) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, config = load_model(folder, strict=True)  # strict: every tensor is used, none is missing
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)[None])[0])


@pytest.mark.backend("mlx")
@pytest.mark.parametrize("shard", [None, 200_000])
def test_mlx_lm_computes_the_references_logits(odd: Path, tmp_path: Path, shard: int | None) -> None:
    import torch

    from gptoss_adapters.reference.model import GptOss

    folder = convert(odd, tmp_path / "mlx", max_shard_bytes=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard is not None)
    got, want = mlx_logits(folder), GptOss.from_checkpoint(str(odd))(torch.tensor(TOKENS)[None])[0].numpy()
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-5
    again = GptOss.from_checkpoint(str(folder))(torch.tensor(TOKENS)[None])[0].numpy()
    assert np.array_equal(again, want)


def test_there_and_back_every_byte(odd: Path, tmp_path: Path) -> None:
    folder = convert(odd, tmp_path / "mlx")
    opened = open_checkpoint(folder)
    report = compare(open_checkpoint(odd), opened)
    assert opened.kind == "mlx" and report.ok and report.counts["BYTES EQUAL"] == len(report.results)
    back = tmp_path / "back"
    back.mkdir()
    write(plan_hf(opened, back, HfOptions(tokenizer="none")).plan, sync=False)
    for file in sorted(odd.glob("*.safetensors")):
        assert (back / file.name).read_bytes() == file.read_bytes()


def test_dequantised_experts_come_back_by_their_side_file(odd: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    dense.mkdir()
    write(plan_hf(open_checkpoint(odd), dense, HfOptions(Kind.HF_BF16, tokenizer="none")).plan, sync=False)
    direct, around = convert(odd, tmp_path / "direct"), convert(dense, tmp_path / "around")
    assert (direct / "model.safetensors").read_bytes() == (around / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("swiglu_limit", 6.0, "swiglu_limit: mlx-lm knows one value"),
        ("layer_types", ("full_attention",) * 3, "no sliding_attention"),
    ],
)
def test_what_mlx_lm_would_compute_otherwise_is_refused(
    odd: Path, tmp_path: Path, field: str, value: object, words: str
) -> None:
    c = open_checkpoint(odd)
    c = c.with_config(dataclasses.replace(c.config, **{field: value}))
    with pytest.raises(BadInput, match=words):
        plan_mlx(c, tmp_path, HfOptions(Kind.MLX))
