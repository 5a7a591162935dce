"""What no engine of this environment runs is read back by our own reader and judged there: MLX folders and Metal's
model.bin. And `gptoss-convert to-gguf --parity`, and vLLM in an environment of its own, from the command line.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gptoss_converters.to_hf import HfOptions
from gptoss_converters.to_metal import plan_metal
from gptoss_converters.to_mlx import plan_mlx
from helpers.broken_files import checkpoint

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats import metal
from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic.checkpoints import SeedMade
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import Report
from gptoss_adapters.parity.runner import Options, Run

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from make_metal_references import ODD_METAL


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def judged(source: Path, out: Path) -> schema.TargetResult:
    run = Run(open_checkpoint(source), Options(text=False, certificate=False))
    run.prompts = [p for p in run.prompts if p.index < 4]
    return run.target(f"torch={out}")


def test_to_mlx(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "p1"), tmp_path / "mlx"
    out.mkdir()
    write(plan_mlx(open_checkpoint(source), out, HfOptions(Kind.MLX, tokenizer="none")).plan, sync=False)
    target = judged(source, out)
    assert target.verdict == schema.WITHIN, target.reason
    assert target.weights and target.weights.verdict == schema.PASS and target.weights.counts["BYTES EQUAL"] == 71


def test_to_metal(tmp_path: Path) -> None:
    """Its format wants heads of 64 and the published vocabulary, less the rows that it drops."""
    source, out = tmp_path / "hf", tmp_path / "model.bin"
    source.mkdir()
    write(
        plan_checkpoint(SeedMade(replace(ODD_METAL, vocab_size=metal.VOCABULARY), 0), Kind.HF_MXFP4, source, {}, "odd"),
        sync=False,
    )
    write(plan_metal(open_checkpoint(source), out).plan, sync=False)
    target = judged(source, out)
    assert target.verdict == schema.WITHIN, target.reason
    assert target.weights and target.weights.verdict == schema.PASS and not target.weights.counts["DIFFERENT"]


@pytest.mark.backend("llama_cpp")
def test_to_gguf_with_parity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gptoss_converters.cli.program import app

    source = checkpoint(tmp_path / "p1")
    app(
        ["to-gguf", str(source), "-o", str(tmp_path / "p1.gguf"), "--tokenizer", "none", "--parity"],
        standalone_mode=False,
    )
    said = capsys.readouterr().out
    assert (
        "parity: SAME EXCEPT: yarn_truncate, confirmed" in said and str(tmp_path / "p1-parity" / "report.html") in said
    )
    (target,) = Report.load(tmp_path / "p1-parity" / "report.json").targets
    assert target.verdict == schema.EXCEPT and [d.status for d in target.deviations] == [schema.CONFIRMED]


@pytest.mark.backend("vllm")
def test_vllm_by_its_interpreter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gptoss_adapters.parity.cli import app

    python = Path(os.environ.get("BIN_VLLM", Path(__file__).parents[2] / ".venv-vllm" / "bin")) / "python"
    source, out = checkpoint(tmp_path / "p1"), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        app(
            ["run", str(source), "-t", f"vllm[dtype=bfloat16]@{python}", "-o", str(out), "--no-text", "--strict"],
            standalone_mode=False,
        )
    made = json.loads((out / "report.json").read_text())
    (target,) = made["targets"]
    assert ended.value.code == 0 and target["verdict"] == schema.WITHIN, target["reason"]
    assert "SAME WITHIN NUMERICS" in capsys.readouterr().out
    assert (
        target["identity"]["version"].startswith("vllm ")
        and target["identity"]["settings"]["dtype"] == "bfloat16"
        and target["null"] == "bfloat16"
    )
