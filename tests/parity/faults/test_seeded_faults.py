"""The 41 seeded faults in noisy runs, one seed here; `bench/parity_faults.py` does ten and writes
bench/results/parity_faults.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.broken_files import checkpoint

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.parity.faults.table import CONTROL, all_faults
from gptoss_adapters.parity.logits.campaign import Campaign, op_level_gate
from gptoss_adapters.parity.noise.nulls import Noise

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import parity_faults as bench

RESULTS = bench.RESULTS
SEED = 21  # not one of the committed ones


@pytest.fixture(scope="module")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Campaign]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("seeded")
    p1, p2 = (open_checkpoint(checkpoint(root / p, p, SEED)) for p in ("p1", "p2"))
    return {
        "float32": Campaign(p1, Noise(), SEED),
        "bfloat16": Campaign(p1, Noise("bfloat16"), SEED),
        "p2 forced": Campaign(p2, Noise("bfloat16"), SEED, forced=True),
    }


def test_the_sheet_s_41_faults() -> None:
    assert [f.number for f in all_faults().values()] == list(range(1, 42))


def test_all_in_float32(campaigns: dict[str, Campaign]) -> None:
    runs = campaigns["float32"].all_runs()
    missed = {o.fault for o in runs if not o.caught}
    model = campaigns["float32"].reference.model
    if op_level_gate(model, all_faults()["clamp_glu_both"].apply(model)) > 1e-6:
        missed.discard("clamp_glu_both")  # seen by the op-level probe
    assert len(runs) == 41 and not missed


def test_bfloat16(campaigns: dict[str, Campaign]) -> None:
    seen = {o.fault for o in campaigns["bfloat16"].all_runs() if o.caught}
    assert len(seen) >= 37
    seen |= {o.fault for o in campaigns["p2 forced"].all_runs() if o.caught}
    assert len(seen) >= 39


def test_no_false_alarm_and_no_control(campaigns: dict[str, Campaign]) -> None:
    for campaign in campaigns.values():
        for seed in (100, 101, 102):
            clean = campaign.run(None, seed)
            assert not clean.caught, clean
        assert not campaign.run(CONTROL).caught


@pytest.mark.parametrize("part", ["summary", "independent"])
def test_committed_figures(part: str) -> None:
    made = json.loads(RESULTS.read_text())
    assert (
        len(made["seeds"]) >= 10
        and made["summary"] == bench.summary(made["seeds"])
        and made["independent"] == bench.summary(bench.independent(made["seeds"]))
    )
    summary = made[part]
    assert summary["worst_caught"]["p1 float32"] == 41 and summary["worst_caught"]["p1 bfloat16"] >= 37
    assert summary["worst_p1_and_p2_forced_bfloat16"] >= 39
    assert summary["false_alarms"] == 0 and summary["control_reported"] == 0
    assert bench.TABLE.read_text() == bench.markdown(made)
