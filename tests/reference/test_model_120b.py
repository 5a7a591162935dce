"""gpt-oss-120b: its router over 128 experts, its true widths, and the memory it would need."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_model import relative

from gptoss_adapters import chat
from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import KINDS, SeedMade, plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.reference.generate import generate
from gptoss_adapters.reference.loading import plan_memory
from gptoss_adapters.reference.model import GptOss
from gptoss_adapters.reference.taps import Taps
from gptoss_adapters.spec import GPT_OSS_20B, GPT_OSS_120B


def test_memory_plan_of_the_published_models() -> None:
    plan = plan_memory(GPT_OSS_120B, context=131072)
    assert plan["experts"] + plan["dense"] == 65_248_815_744
    assert plan_memory(GPT_OSS_20B, context=4096)["total"] < 14.5e9
    sliding, full = 18 * 127, 18 * 131072  # columns kept by each kind of layer
    assert plan["kv_cache"] == (sliding + full) * 2 * 8 * 64 * 4


@pytest.fixture(scope="module")
def of_128_experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """120b's router over 128 experts, narrow: the same weights in every layout."""
    folder = tmp_path_factory.mktemp("experts")
    config = dataclasses.replace(
        GPT_OSS_120B,
        num_hidden_layers=2,
        layer_types=GPT_OSS_120B.layer_types[:2],
        vocab_size=512,
        hidden_size=96,
        intermediate_size=64,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        bos_token_id=509,
        pad_token_id=510,
        eos_token_id=511,
    )
    for kind in KINDS:
        (folder / kind).mkdir()
        write(plan_checkpoint(SeedMade(config, 0), kind, folder / kind, {}, "128 experts"), sync=False)
    return {kind: folder / kind for kind in KINDS}


def test_128_experts_in_every_layout_and_on_every_path(of_128_experts: dict[str, Path]) -> None:
    ids = torch.arange(3, 43)[None]
    models = {kind: GptOss.from_checkpoint(path, experts="oracle") for kind, path in of_128_experts.items()}
    taps = Taps()
    truth = GptOss.from_checkpoint(of_128_experts["hf-mxfp4"], dtype=torch.float64)(ids, taps=taps)
    assert taps.router_scores[0].shape[-1] == 128 and len(torch.unique(torch.stack(taps.experts))) > 64
    oracle = {kind: model(ids) for kind, model in models.items()}
    assert all(torch.equal(oracle["hf-mxfp4"], other) for other in oracle.values())
    assert relative(oracle["hf-mxfp4"], truth) < 1e-5
    for experts, n in (("q24", 40), ("triton", 2)):  # Triton: the interpreter on a CPU
        device = "cuda" if experts == "triton" and torch.cuda.is_available() else "cpu"
        model = GptOss.from_checkpoint(of_128_experts["hf-mxfp4"], experts=experts, device=device)
        assert relative(model(ids[:, :n]).cpu(), truth[:, :n]) < 1e-5
    answer = generate(models["openai"], ids[0].tolist(), max_tokens=4, stop_ids=[])[0]
    assert answer.tokens[0] == int(truth[0, -1].argmax())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_layers_of_the_true_120b_are_within_1e5_of_fp64(tmp_path: Path) -> None:
    """3.5 GB: the true widths, 128 experts, the native kernels."""
    write(plan_new("120b-shape", tmp_path, layers=2), sync=False)
    ids = torch.tensor([[200006, 17, 99, 4, 31, 1000]])
    truth = GptOss.from_checkpoint(tmp_path, dtype=torch.float64)(ids, last_only=True)
    for precision, limit in (("q24", 1e-5), ("q16", 1e-3)):
        assert relative(GptOss.from_checkpoint(tmp_path, experts=precision)(ids, last_only=True), truth) < limit


def test_the_plan_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    """`gptoss-chat 120b-shape --plan`: the whole 120b in MXFP4 at its full context."""
    with pytest.raises(SystemExit) as end:
        chat.app(["120b-shape", "--plan"])
    *_, last = capsys.readouterr().out.splitlines()
    plan = plan_memory(GPT_OSS_120B, 131072)
    assert end.value.code == 0
    assert last.split() == [
        "131072",
        *(f"{plan[part] / 1e9:.3f}" for part in ("experts", "dense", "kv_cache", "total")),
    ]
