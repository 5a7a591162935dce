"""vLLM's default mode, in which Dynamo and Inductor compile the model: the plugin's expert layers are opaque nodes of
the graph, and the numbers stay those of the reference.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import vllm_engine as engine

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(600)]

MAX_DIFFERENCE, MAX_KL = 0.02, 1e-5  # of float32 log-probabilities; measured: 4e-5 and 1e-8
TINY = engine.GOLD / "tiny"
PROMPTS = [np.random.default_rng(n).integers(0, 320, n).tolist() for n in (40, 19, 3)]  # the windows are 8 and 12
OWN = {"rms_norm_eps": 0.05, "layer_types": ["full_attention"] * 4, "swiglu_limit": 0.5, "swiglu_alpha": 0.9}


@pytest.mark.parametrize(
    ("form", "changes", "mode", "method"),
    [
        pytest.param("hf-mxfp4", OWN, "native", "NativeExperts", id="packed"),
        pytest.param("hf-mxfp4", {}, "native", "NativeExperts", id="vllm-model", marks=pytest.mark.slow),
        pytest.param("hf-bf16", OWN, "native", "DenseExperts", id="dense", marks=pytest.mark.slow),
        pytest.param("hf-mxfp4", {}, "dequantise", "DequantisedExperts", id="widened", marks=pytest.mark.slow),
        pytest.param("hf-mxfp4", OWN, "dequantise", "DequantisedExperts", id="widened-own", marks=pytest.mark.slow),
    ],
)
def test_compiled_experts_give_the_references_numbers(
    form: str, changes: dict[str, Any], mode: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_ADAPTERS_EXPERTS", mode)
    shutil.copytree(TINY / form, tmp_path / form, copy_function=shutil.copyfile)
    file = tmp_path / form / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    llm = engine.load(file.parent, enforce_eager=False)
    try:
        model = engine.model_of(llm)
        assert type(model.model.layers[0].mlp.experts.routed_experts.quant_method).__name__ == method
        assert model.model.do_not_compile is False  # the negative: this engine runs a compiled graph
        for ids, (table, new) in zip(PROMPTS, engine.score(llm, PROMPTS), strict=True):
            difference, kl = engine.distance(table, engine.reference(file.parent, ids + new[:-1]))
            assert difference <= MAX_DIFFERENCE and kl <= MAX_KL, (difference, kl)
        del model
    finally:
        engine.free(llm)


@pytest.mark.slow
def test_compiled_against_the_gold_logits_of_third_parties() -> None:
    """Through `LLM`: the gold checkpoints have no tokenizer with which `vllm serve` could chat."""
    from safetensors.numpy import load_file

    folder = engine.GOLD / "tiny-margin"
    gold = load_file(folder / "gold_logits.safetensors")
    truth = gold["logits_f64"].astype(np.float64)
    truth -= np.log(np.exp(truth).sum(-1, keepdims=True))
    llm = engine.load(folder / "hf-mxfp4", enforce_eager=False)
    try:
        ((table, _),) = engine.score(llm, [gold["input_ids"].tolist()], new=1)
    finally:
        engine.free(llm)
    difference, kl = engine.distance(table, truth)
    assert difference <= MAX_DIFFERENCE and kl <= MAX_KL, (difference, kl)
