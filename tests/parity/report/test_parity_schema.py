"""The report survives the way to JSON and back; what is no report is refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.errors import BadInput
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.measurements import Flip, Layers, Metrics
from gptoss_adapters.parity.report.schema import Family, Report, Suspect, TargetResult


def _report() -> Report:
    family = Family(
        "kitchen",
        "everything",
        1,
        2,
        Metrics(2, nmse_mean=np.float64(1e-9), kl_max=math.inf),
        {"fp32": Metrics(2)},
        {"nmse_mean": 2.0},
    )
    layers = Layers(0, [[1.0, None]], [[0.5, 0.5]], flips=[Flip(0, 0, 1, 0.1, 0.2)])
    target = TargetResult(
        "torch=x",
        "torch",
        schema.DIFFERENT,
        suspects=[Suspect("win_plus1", True, 0.9)],
        families=[family],
        layers=layers,
    )
    return Report("x", targets=[target])


def test_round_trip(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again.to_json() == report.to_json()
    assert again.targets[0].families[0].null["fp32"].positions == 2
    assert again.targets[0].families[0].metrics.kl_max is None  # not finite
    assert again.targets[0].layers is not None and again.targets[0].layers.flips[0].position == 1


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    raw = _report().to_json() | {"later": 1}
    raw["targets"][0]["later"] = [1]
    assert Report.from_json(raw).targets[0].name == "torch=x"


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"version": 99, "targets": []}', "no", '{"version": 1, "checkpoint": "x", "targets": [1]}']
)
def test_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(BadInput, match=r"r\.json: "):
        Report.load(tmp_path / "r.json")


def test_exit_codes() -> None:
    def codes(*verdicts: str, strict: bool = False) -> int:
        return schema.exit_code([TargetResult("t", "t", v) for v in verdicts], strict)

    assert codes(schema.SAME, schema.WITHIN, schema.EXCEPT) == 0
    assert codes(schema.EXCEPT, strict=True) == 1
    assert codes(schema.NOT_COMPARABLE, schema.DIFFERENT) == 1
    assert codes(schema.NOT_COMPARABLE, schema.SAME) == 3
    assert json.dumps(_report().to_json())
