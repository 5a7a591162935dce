"""vLLM as a target of gptoss-parity: the same model within plain float32 rounding, with no null of its own and no
known deviation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic.checkpoints import plan_new
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.runner import Options, Run

pytestmark = pytest.mark.backend("vllm")


def test_p1_in_float32(tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)
    write(plan_new("p1", tmp_path / "p1"), sync=False)
    target = Run(open_checkpoint(tmp_path / "p1"), Options(text=False, chunked=False)).target(
        "vllm"
    )  # test_vllm_backend.py has the prefill in chunks
    assert target.verdict == schema.WITHIN, target.reason
    assert target.null == "float32" and target.worst_excess and target.worst_excess < schema.LOOK_EXCESS
    assert not target.deviations and not target.suspects
    assert target.weights and target.weights.verdict == schema.PASS
    assert {s.name: s.verdict for s in target.structural}["decode against prefill"] == schema.PASS
    assert target.greedy and target.greedy.verdict == schema.PASS
    assert (
        target.certificate
        and target.certificate.caught == 41
        and target.certificate.control is not None
        and target.certificate.control < 1
    )
