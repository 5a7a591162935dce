"""Nulls compute as engines do, and know a tie from a fault; options in a target's spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.broken_files import checkpoint

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.errors import UsageError
from gptoss_adapters.parity.logits.measure import Reference
from gptoss_adapters.parity.logits.probes import Prompt
from gptoss_adapters.parity.logits.ties import Ties, drawing_lots, score_noise
from gptoss_adapters.parity.noise.nulls import Noise, realisations, to_q8_0
from gptoss_adapters.parity.noise.variants import clone, logits
from gptoss_adapters.parity.targets import Target, parse_spec, redact_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("nulls")
    checkpoint(root / "p1")
    for name, experts in (("f32", "f32"), ("mxfp4", None)):
        write(
            plan_gguf(
                open_checkpoint(root / "p1"),
                root / f"{name}.gguf",
                GgufOptions("f32" if experts else None, experts, "none"),
            ).plan,
            sync=False,
        )
    return root


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize(
    "options",
    [
        "cache_type=f16",
        "cache_type=bf16",
        "flash_attn=true",
        "cache_type=f16,flash_attn=true",
        "cache_type=q8_0,flash_attn=true",
    ],
)
@pytest.mark.parametrize("file", ["f32", "mxfp4"])
def test_the_plain_null_is_llama_cpp(file: str, options: str, folder: Path) -> None:
    """What is left between the two is far smaller than what both round: float32's own noise, and a rounding that it
    tips over.
    """
    reference = Reference(open_checkpoint(folder / "p1"), ("yarn_truncate",))
    target = Target.open(f"llama_cpp[{options}]={folder / file}.gguf", reference.checkpoint, 60.0)
    null = next(realisations(target.noise(reference.checkpoint))).apply(reference.model)
    try:
        left, rounded = [], []
        for ids in (*([i] for i in range(0, 480, 20)), [5, 77, 300, 12, 9, 44]):
            truth, own, theirs = (
                x.astype(np.float64)
                for x in (logits(reference.model, ids).numpy(), target.backend.logits(ids), logits(null, ids).numpy())
            )
            left.append(((own - theirs) ** 2).mean(-1))
            rounded.append(((theirs - truth) ** 2).mean(-1))
    finally:
        target.backend.close()
    assert np.median(np.concatenate(left)) < 0.1 * np.median(np.concatenate(rounded))


def test_q8_0_is_rounded_as_ggml_rounds_it() -> None:
    """Codes by the exact scale, values by the stored one: 127 codes of 1/127 are 0.99979, the nearest float16 of
    the scale times 127.
    """
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, 0] = 1.0
    assert float(to_q8_0(x)[0, 0]) == 127 * float(np.float16(1 / 127))
    assert torch.equal(to_q8_0(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_lots_are_drawn_among_ties_only(folder: Path) -> None:
    reference = Reference(open_checkpoint(folder / "p1"))
    prompts = [Prompt("single", i, (7 * i + 3,)) for i in range(24)]
    nulls = [n.apply(reference.model) for n in realisations(Noise("bfloat16"))]
    widths = score_noise(reference.model, nulls, prompts)
    assert (widths > 0).all()
    plain = logits(reference.model, (3,))
    assert torch.equal(logits(drawing_lots(clone(reference.model), 0 * widths, 0), (3,)), plain)
    assert not torch.equal(logits(drawing_lots(clone(reference.model), 1e6 * widths, 0), (3,)), plain)
    ids = [reference.sample for _ in prompts]
    with torch.inference_mode():
        truth = [reference.values(h, reference.sample) for h in reference.hidden(reference.model, prompts)]
    ties = Ties(reference.model, Noise("bfloat16"), prompts, ids, truth)
    energy = ties.energy("single")
    assert energy.shape == (16, 24) and (energy > 0).all() and ties.energy("single") is energy


@pytest.mark.parametrize(
    ("spec", "plain", "options"),
    [
        ("torch", "torch", {}),
        ("torch[dtype=bfloat16]", "torch", {"dtype": "bfloat16"}),
        (
            "llama_cpp[cache_type=f16, flash_attn=true,n_threads=2]=a[1].gguf",
            "llama_cpp=a[1].gguf",
            {"cache_type": "f16", "flash_attn": True, "n_threads": 2},
        ),
        ("vllm[dtype=bfloat16]@/x/python=/a", "vllm@/x/python=/a", {"dtype": "bfloat16"}),
        ("llama_cpp=a[b=c].gguf", "llama_cpp=a[b=c].gguf", {}),
    ],
)
def test_options_in_a_spec(spec: str, plain: str, options: dict[str, Any]) -> None:
    assert parse_spec(spec) == (plain, options)


def test_a_key_is_not_shown() -> None:
    assert redact_key("llama_server[api_key=s3cret,n_ctx=9]=http://h") == "llama_server[api_key=***,n_ctx=9]=http://h"
    assert redact_key("llama_server=http://h?api_key=x") == "llama_server=http://h?api_key=x"  # no option of ours


@pytest.mark.parametrize("spec", ["torch[]", "torch[dtype]", "torch[=3]", "torch[dtype=]"])
def test_bad_options(spec: str) -> None:
    with pytest.raises(UsageError, match="bad options of a target"):
        parse_spec(spec)
