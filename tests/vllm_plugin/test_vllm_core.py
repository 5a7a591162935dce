"""The plugin inside the real vLLM CPU engine, judged by the reference over the whole vocabulary: every kind of
checkpoint, each config field, chunked prefill, batches, bf16, and what vLLM does without us.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import kinds
from helpers import vllm_engine as engine

from gptoss_adapters.checkpoint.synthetic import checkpoints as synthetic
from gptoss_adapters.checkpoint.writing import writer

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(600)]

MAX_DIFFERENCE, MAX_KL = 0.02, 1e-5  # of float32 log-probabilities; measured: 4e-5 and 1e-8
TINY, MARGIN = engine.GOLD / "tiny", engine.GOLD / "tiny-margin"


def tokens(n: int, vocab: int = 320, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, n).tolist()


PROMPTS = [tokens(40, seed=1), tokens(19, seed=2), tokens(3, seed=3)]  # the windows are 8 and 12


@pytest.fixture(autouse=True)
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's processes are without any of our variables; the entry point runs when the first engine starts."""
    for name in [n for n in os.environ if n.startswith("GPTOSS_ADAPTERS_")]:
        monkeypatch.delenv(name)
    from importlib.metadata import entry_points

    assert "gptoss_adapters" in entry_points(group="vllm.general_plugins").names, (
        "the package is not installed beside vLLM"
    )


class Engine:
    """One engine at a time, freed at the end."""

    def __init__(self, path: Path, dtype: str = "float32", **more: Any) -> None:
        self.path, self.llm = path, engine.load(path, dtype, **more)
        self.model = engine.model_of(self.llm)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        del self.model
        engine.free(self.llm)

    def distances(
        self, reference: Path | None = None, prompts: list[list[int]] = PROMPTS
    ) -> Iterator[tuple[float, float]]:
        for ids, (table, new) in zip(prompts, engine.score(self.llm, prompts), strict=True):
            yield engine.distance(table, engine.reference(reference or self.path, ids + new[:-1]))

    def check(self, reference: Path | None = None, prompts: list[list[int]] = PROMPTS) -> None:
        for difference, kl in self.distances(reference, prompts):
            assert difference <= MAX_DIFFERENCE and kl <= MAX_KL, (difference, kl)


def ours(model: Any) -> bool:
    return type(model).__module__ == "gptoss_adapters.vllm_plugin.model"


# fp32: every way of storing the same model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["hf-mxfp4", "hf-bf16", "hf-defused", "hf-bf16-out-in", "hf-quark", "hf-compressed-tensors"]
)
def test_kinds_in_fp32_with_chunks_and_batches(kind: str, tmp_path: Path) -> None:
    source = TINY / ("hf-mxfp4" if kind in kinds.MXFP4_KINDS else "hf-bf16")
    path = (
        source
        if kind == source.name
        else kinds.write_kind(source, kind, tmp_path / kind, spelling=5 if kind == "hf-defused" else 4)
    )
    with Engine(path, max_num_batched_tokens=16) as e:  # three prompts at once, the longest in three chunks
        assert ours(e.model) == (kind not in ("hf-mxfp4", "hf-bf16"))  # vLLM's own class where it serves right
        e.check(TINY / "hf-mxfp4")


@pytest.mark.parametrize("shape", ["tiny", "odd-shape"])
def test_mlx_is_served_packed(shape: str, tmp_path: Path) -> None:
    """Its config.json says quantization_config, but not quant_method: the tensors' kind tells that they are MXFP4."""
    from gptoss_converters.to_hf import HfOptions
    from gptoss_converters.to_mlx import plan_mlx

    from gptoss_adapters.checkpoint import open_checkpoint

    source = TINY / "hf-mxfp4"
    if shape == "odd-shape":
        source = tmp_path / "source"
        writer.write(synthetic.plan_new("odd-shape", source))
    folder = tmp_path / "mlx"
    folder.mkdir()
    writer.write(plan_mlx(open_checkpoint(source), folder, HfOptions(tokenizer="none")).plan)
    with Engine(folder) as e:
        assert ours(e.model)
        experts = {name: p.dtype for name, p in e.model.named_parameters() if name.endswith("w13_weight")}
        assert experts and {str(dtype) for dtype in experts.values()} == {"torch.uint8"}
        e.check(source, [tokens(40, vocab=320, seed=1), tokens(3, vocab=320, seed=3)])


def test_gold_logits_of_third_parties() -> None:
    from safetensors.numpy import load_file

    gold = load_file(MARGIN / "gold_logits.safetensors")
    truth = gold["logits_f64"].astype(np.float64)
    truth -= np.log(np.exp(truth).sum(-1, keepdims=True))
    with Engine(MARGIN / "hf-mxfp4") as e:
        ((table, _),) = engine.score(e.llm, [gold["input_ids"].tolist()], new=1)
    difference, kl = engine.distance(table, truth)
    assert difference <= MAX_DIFFERENCE and kl <= MAX_KL, (difference, kl)


def test_odd_shape_in_fp32_then_another_in_the_same_process(tmp_path: Path) -> None:
    writer.write(synthetic.plan_new("odd-shape", tmp_path / "odd"))
    prompts = [tokens(30, 1003, 4), tokens(14, 1003, 5)]
    with Engine(tmp_path / "odd") as e:
        e.check(prompts=prompts)
    with Engine(TINY / "hf-mxfp4") as e:
        e.check(prompts=PROMPTS[1:])


def test_dequantise_at_load_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_ADAPTERS_EXPERTS", "dequantise")
    with Engine(TINY / "hf-mxfp4") as e:
        assert e.model.model.layers[0].mlp.experts.routed_experts.w13_weight.is_floating_point()
        e.check()


def test_bf16_experts_are_quantised_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was dequantised MXFP4 comes back: the same logits from packed experts."""
    monkeypatch.setenv("GPTOSS_ADAPTERS_QUANTIZE", "mxfp4")
    with Engine(TINY / "hf-bf16") as e:
        experts = e.model.model.layers[0].mlp.experts.routed_experts
        assert str(experts.w13_weight.dtype) == "torch.uint8"
        e.check(TINY / "hf-mxfp4")


# The config is obeyed ------------------------------------------------------------------------------------------------

ROPE = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
FIELDS: dict[str, dict[str, Any]] = {  # None: the key is taken out
    "rms_norm_eps": {"rms_norm_eps": 0.05},
    "swiglu_limit": {"swiglu_limit": 0.5},
    "swiglu_alpha": {"swiglu_alpha": 0.9},
    "layer_types": {"layer_types": ["full_attention"] * 4},
    "attention_factor": {"rope_scaling": ROPE | {"attention_factor": 2.0}},
}
SERVED = {  # fields that vLLM's class reads too: right either way
    "sliding_window": {"sliding_window": 5},
    "rope_parameters": {"rope_scaling": None, "rope_theta": None, "rope_parameters": ROPE | {"rope_theta": 10000.0}},
    "no RoPE fields": {"rope_scaling": None},  # YaRN as published, to transformers, vLLM and the reference
}


def variant(folder: Path, source: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in raw.items() if k not in changes or changes[k] is not None})
    )
    return folder


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_obeyed_and_without_the_plugin_it_is_not(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = PROMPTS[:1]
    for form in ("hf-bf16", "hf-mxfp4"):
        with Engine(variant(tmp_path / form, TINY / form, FIELDS[field])) as e:
            e.check(prompts=prompts)
    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "off")
    with Engine(tmp_path / "hf-bf16") as e:
        assert not ours(e.model)
        difference, kl = next(e.distances(prompts=prompts))
    assert difference > 10 * MAX_DIFFERENCE and kl > 10 * MAX_KL, (difference, kl)


@pytest.mark.parametrize("field", SERVED)
def test_a_field_that_vllm_reads_is_left_to_vllm(field: str, tmp_path: Path) -> None:
    with Engine(variant(tmp_path / field, TINY / "hf-mxfp4", SERVED[field])) as e:
        assert not ours(e.model)
        e.check(prompts=PROMPTS[:1])


def test_rope_without_yarn_loads(tmp_path: Path) -> None:
    changes = {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    with Engine(variant(tmp_path / "plain", TINY / "hf-mxfp4", changes)) as e:
        e.check(prompts=PROMPTS[:1])


# vLLM without us -----------------------------------------------------------------------------------------------------


def test_without_the_plugin_vllm_refuses_mxfp4(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "off")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(NotImplementedError, match="MXFP4"):
        engine.load(TINY / "hf-mxfp4", "bfloat16")


def test_with_amx_the_built_in_method_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gptoss_adapters.vllm_plugin import policy

    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert policy.builtin_mxfp4(torch.bfloat16) == amx and not policy.builtin_mxfp4(torch.float32)


# Processes -----------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from vllm.plugins import load_general_plugins
if __name__ == "__main__":
    load_general_plugins()
    from vllm import ModelRegistry
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    entry = ModelRegistry.models["GptOssForCausalLM"]
    ours = sorted(m for m in sys.modules if m.startswith("gptoss_"))
    print("RESULT", entry.module_name, "gptoss_mxfp4" in QUANTIZATION_METHODS, ours)
"""


@pytest.mark.parametrize("how", ["GPTOSS_ADAPTERS_VLLM=off", "VLLM_PLUGINS=another"])
def test_off_leaves_no_trace(how: str) -> None:
    name, _, value = how.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | engine.ENVIRONMENT | {name: value},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT")] or [done.stderr]
    allowed = {
        "gptoss_adapters",
        "gptoss_adapters.errors",
        *(f"gptoss_adapters.vllm_plugin{m}" for m in ("", ".policy", ".distribution")),
    }
    assert line.startswith("RESULT vllm.model_executor.models.gpt_oss False"), line
    loaded = set(json.loads(line[line.index("[") :].replace("'", '"')))
    assert loaded <= allowed, loaded
    assert "gptoss-adapters" not in done.stderr + done.stdout


EXPERT_PARALLEL = {"tensor_parallel_size": 2, "enable_expert_parallel": True}


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param("odd-shape", {}, id="one"),
        pytest.param("odd-shape", {"tensor_parallel_size": 2}, id="tp2"),
        pytest.param("p5", EXPERT_PARALLEL, id="ep2", marks=pytest.mark.slow),  # rank by rank in test_vllm_ranks.py
    ],
)
def test_engine_in_processes_of_its_own(shape: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Also tensor parallel for real: two processes on the CPU, each with its slice of the packed experts."""
    path = tmp_path / "model"
    writer.write(synthetic.plan_new(shape, path))  # the odd one is 96 wide: 3 blocks, so the ranks get 2 and 1
    prompts = [tokens(20, 500, 11)]
    environment = (
        os.environ
        | engine.ENVIRONMENT
        | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    )
    argv = [
        sys.executable,
        "-m",
        "helpers.vllm_multi",
        str(path),
        json.dumps(options),
        json.dumps(prompts),
    ]
    done = subprocess.run(argv, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=500)
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT")] or [
        done.stderr[-3000:] + done.stdout[-3000:]
    ]
    assert line.startswith("RESULT"), line
    for ids, out in zip(prompts, json.loads(line.removeprefix("RESULT ")), strict=True):
        difference, kl = engine.distance(np.array(out["logprobs"]), engine.reference(path, ids + out["ids"][:-1]))
        assert difference <= MAX_DIFFERENCE and kl <= MAX_KL, (difference, kl)
