"""Faults in what real engines load: DIFFERENT, and the right suspect named. The weights' bytes would tell too; here
the logits do.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.broken_files import BROKEN, checkpoint, no_sinks, one_expert_shifted

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import TargetResult
from gptoss_adapters.parity.runner import Options, Run

MXFP4 = GgufOptions(tokenizer="none")
F32 = GgufOptions(dense="f32", experts="f32", tokenizer="none")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    import torch

    torch.set_num_threads(1)
    return Run(open_checkpoint(checkpoint(tmp_path_factory.mktemp("p1") / "p1")), Options(text=False))


def gguf(folder: Path, file: Path, options: GgufOptions) -> Path:
    write(plan_gguf(open_checkpoint(folder), file, options).plan, sync=False)
    return file


def check(target: TargetResult, faults: tuple[str, ...]) -> None:
    assert target.verdict == schema.DIFFERENT, target.reason
    assert any(f.verdict == schema.FAIL for f in target.families)  # the logits say so, not the bytes alone
    top = [s.fault for s in target.suspects[:3]]
    assert any(fault in top for fault in faults), (top, target.reason)


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize("name", BROKEN)
def test_in_llama_cpp(name: str, run: Run, tmp_path: Path) -> None:
    change, faults = BROKEN[name]
    folder = checkpoint(tmp_path / "broken")
    change(folder)
    target = run.target(f"llama_cpp={gguf(folder, tmp_path / 'broken.gguf', MXFP4)}")
    check(target, faults)
    assert target.suspects[0].fault in faults and target.suspects[0].confirmed
    assert target.weights and target.weights.verdict == schema.FAIL


@pytest.mark.backend("transformers")
@pytest.mark.parametrize("name", ["gate and up swapped", "window too long", "one expert's scales"])
def test_in_transformers(name: str, run: Run, tmp_path: Path) -> None:
    change, faults = BROKEN[name]
    folder = checkpoint(tmp_path / "broken")
    change(folder)
    target = run.target(f"transformers={folder}")
    check(target, faults)
    assert target.suspects[0].fault in faults and target.suspects[0].confirmed


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize("options", [MXFP4, F32], ids=["mxfp4", "f32"])
def test_two_faults_are_not_confirmed_as_one(options: GgufOptions, run: Run, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "broken")
    no_sinks(folder)
    one_expert_shifted(folder)
    target = run.target(f"llama_cpp={gguf(folder, tmp_path / 'broken.gguf', options)}")
    assert target.verdict == schema.DIFFERENT and target.suspects
    assert not any(s.confirmed for s in target.suspects), target.suspects
