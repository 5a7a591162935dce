"""The self-check inside the real vLLM CPU engine: after loading, before the first request, through the layers that
serve.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import vllm_engine as engine

from gptoss_adapters.errors import CheckFailed

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(600)]
TINY = engine.GOLD / "tiny"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """What the plugin logs: (level, text)."""
    from gptoss_adapters.vllm_plugin import log

    found: list[tuple[int, str]] = []

    def keep(record: logging.LogRecord) -> bool:
        found.append((record.levelno, record.getMessage()))
        return True

    log.addFilter(keep)  # vLLM configures its loggers when it starts, and takes their handlers away
    monkeypatch.setenv("GPTOSS_ADAPTERS_SELFCHECK", "1")
    yield found
    log.removeFilter(keep)


def only(lines: list[tuple[int, str]]) -> tuple[int, str]:
    (found,) = [(level, text) for level, text in lines if "self-check" in text]
    return found


@pytest.mark.parametrize("form", ["hf-mxfp4", "hf-bf16"])
def test_a_damaged_weight_is_told(
    form: str, lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gptoss_adapters.vllm_plugin import metrics, selfcheck

    monkeypatch.setenv("GPTOSS_ADAPTERS_VERDICTS", str(tmp_path / "verdicts"))
    llm = engine.load(TINY / form, hf_overrides={"swiglu_limit": 0.5})  # what is served is what is judged
    model, config = engine.model_of(llm), llm.llm_engine.vllm_config
    level, text = only(lines)  # nothing has been asked of the engine yet
    assert level == logging.INFO and "self-check passed" in text and metrics.read_verdict() is True
    assert "eval" not in vars(model)  # the hook has left
    experts = model.model.layers[1].mlp.experts.routed_experts
    weight = experts.w13_weight.data
    weight.view(weight.dtype)[3].copy_(weight[4].clone())  # one expert of layer 1 holds another's weights
    lines.clear()
    assert selfcheck.check(model, config) is False and metrics.read_verdict() is False
    level, text = only(lines)
    assert level == logging.ERROR and "FAILED" in text and "layer 1" in text
    assert selfcheck.check(model, config, selfcheck.UNASKED) is True  # layer 0 is whole, and all that it looks at
    monkeypatch.setenv("GPTOSS_ADAPTERS_SELFCHECK", "require")
    with pytest.raises(CheckFailed, match="SELFCHECK=require"):
        selfcheck.check(model, config)
    del model, experts, weight
    engine.free(llm)


def test_experts_that_were_quantised_while_loading_are_judged_as_such(
    lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What rounding to MXFP4 costs is not a fault: the cut-down weights are shifted, so that it does cost something."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    monkeypatch.setenv("GPTOSS_ADAPTERS_QUANTIZE", "mxfp4")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(TINY / "hf-bf16", folder, copy_function=shutil.copyfile)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, value in tensors.items():
            if name.endswith(("gate_up_proj", "down_proj")):
                tensors[name] = (value.astype(np.float32) * 1.1).astype(value.dtype)
        save_file(tensors, file, {"format": "pt"})
    engine.free(engine.load(folder))
    level, text = only(lines)
    assert level == logging.INFO and "self-check passed" in text, text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel_config": {"data_parallel_size": 2}}, "does not run with data parallel (2 ranks)"),
        ({"parallel_config": {"enable_eplb": True}}, "--enable-eplb"),
        ({"load_config": {"load_format": "dummy"}}, "--load-format dummy"),
        ({"quant_config": SimpleNamespace(get_name=lambda: "fp8")}, "quantization fp8 changes the experts"),
        ({"quant_config": SimpleNamespace(get_name=lambda: "gpt_oss_mxfp4")}, ""),
    ],
)
def test_where_it_cannot_run_it_is_left_out_in_one_line(
    changes: dict[str, Any], said: str, lines: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import LoadConfig, ParallelConfig

    from gptoss_adapters.vllm_plugin import selfcheck

    config = SimpleNamespace(parallel_config=ParallelConfig(), load_config=LoadConfig(), quant_config=None)
    for name, values in changes.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            setattr(getattr(config, name), key, value)
        if not isinstance(values, dict):
            setattr(config, name, values)
    assert said in selfcheck.find_hindrance(config) and bool(said) == bool(selfcheck.find_hindrance(config))
    if said:
        assert selfcheck.check(None, config) is None
        assert only(lines)[0] == logging.WARNING
        monkeypatch.setenv("GPTOSS_ADAPTERS_SELFCHECK", "require")
        with pytest.raises(CheckFailed):
            selfcheck.check(None, config)


def test_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was asked for; on GPUs also where nothing was said; nowhere when it is off."""
    from gptoss_adapters.vllm_plugin import policy, selfcheck

    for value, on_cpu, scheduled in [
        ("1", True, True),
        ("require", True, True),
        ("", True, False),
        ("", False, True),
        ("0", False, False),
        ("off", True, False),
    ]:
        monkeypatch.setenv("GPTOSS_ADAPTERS_SELFCHECK", value)
        monkeypatch.setattr(policy, "on_cpu", lambda on_cpu=on_cpu: on_cpu)
        model = SimpleNamespace()
        selfcheck.schedule(model, None)  # type: ignore[arg-type]
        assert ("eval" in vars(model)) == scheduled, (value, on_cpu)
