"""Whole runs: clean targets are the same, known deviations are confirmed, and what breaks is reported, not thrown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gptoss_converters.gguf.to_gguf import GgufOptions, plan_gguf
from helpers.broken_files import checkpoint

from gptoss_adapters.backends import Backend, open_backend
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.writing.writer import write
from gptoss_adapters.parity import targets
from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import Report, TargetResult
from gptoss_adapters.parity.runner import Options, Run

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("parity")
    checkpoint(root / "p1")
    for name, dense, experts in (("f32", "f32", "f32"), ("bf16", "bf16", "bf16"), ("mxfp4", None, None)):
        write(
            plan_gguf(open_checkpoint(root / "p1"), root / f"{name}.gguf", GgufOptions(dense, experts, "none")).plan,
            sync=False,
        )
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run(open_checkpoint(folder / "p1"), Options(text=False))


def no_alarm(target: TargetResult) -> None:
    assert target.verdict not in (schema.DIFFERENT, schema.NOT_COMPARABLE), target.reason
    assert (
        not target.suspects
        and target.certificate
        and target.certificate.control is not None
        and target.certificate.control < 1
    )


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize("file", ["f32", "bf16", "mxfp4"])
def test_llama_cpp_rounds_yarn_and_nothing_else(file: str, folder: Path, run: Run) -> None:
    target = run.target(f"llama_cpp={folder / file}.gguf")
    no_alarm(target)
    assert target.verdict == schema.EXCEPT
    (deviation,) = target.deviations
    assert deviation.fault == "yarn_truncate" and deviation.status == schema.CONFIRMED
    assert deviation.excess_without and deviation.excess_with
    assert deviation.excess_without > 10 > deviation.excess_with
    assert deviation.coefficient == pytest.approx(1, abs=1e-4 if file == "f32" else 0.1)
    assert {s.name: s.verdict for s in target.structural}["chunked prefill"] == schema.PASS


@pytest.mark.backend("llama_cpp")
def test_llama_cpp_against_a_reference_that_rounds_too(folder: Path) -> None:
    target = Run(open_checkpoint(folder / "p1"), Options(text=False, carry=("yarn_truncate",))).target(
        f"llama_cpp={folder / 'f32.gguf'}"
    )
    no_alarm(target)
    assert target.verdict == schema.WITHIN and not target.deviations


@pytest.mark.backend("llama_cpp")
def test_an_engine_of_somebody_else_is_judged_by_what_it_says_of_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    run = Run(open_checkpoint(folder / "p1"), Options(text=False, certificate=False))
    target = run.target(f"helpers.fake_targets:ThirdParty={folder / 'mxfp4.gguf'}")
    assert target.verdict == schema.EXCEPT, target.reason
    assert target.identity.engine == "mine" and target.weights and target.weights.verdict == schema.PASS
    assert target.null == "float32, dense inputs bf16, expert inputs q8_0"
    (deviation,) = target.deviations
    assert (deviation.fault, deviation.engine) == ("yarn_truncate", "mine")


def test_an_engine_takes_the_reference_s_own_checkpoint_if_it_opens_such(folder: Path) -> None:
    run = Run(open_checkpoint(folder / "p1"), Options(text=False, certificate=False))
    assert "llama_cpp needs a GGUF file" in run.target("llama_cpp").reason


@pytest.mark.backend("transformers")
def test_transformers(run: Run) -> None:
    target = run.target("transformers")
    no_alarm(target)
    assert target.verdict == schema.WITHIN and target.certificate and target.certificate.caught == 41


def test_torch_in_other_precisions_and_bit_for_bit(folder: Path) -> None:
    for options, verdict in (
        ({}, schema.WITHIN),
        ({"dtype": "bfloat16"}, schema.WITHIN),
        ({"experts": "oracle"}, schema.SAME),
    ):
        target = Run(open_checkpoint(folder / "p1"), Options(text=False, certificate=False, backend=options)).target(
            "torch"
        )
        assert target.verdict == verdict, (options, target.reason)
        assert target.layers and len(target.layers.nmse) == 4 and all(f.cheap for f in target.layers.flips)


def open_with_little_patience(spec: str, offers: Any, timeout: float, **options: Any) -> Backend:
    """... for the engine that hangs, and for no other, however busy the machine."""
    return open_backend(spec, offers, timeout=2.0 if ":Hangs" in spec else timeout, **options)


@pytest.mark.parametrize(("engine", "says"), [("Dies", "SIGABRT|died"), ("Nan", "NaN"), ("Hangs", "said nothing")])
def test_what_breaks_is_not_comparable_and_the_others_still_run(
    engine: str, says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(targets, "open_backend", open_with_little_patience)
    made = Run(open_checkpoint(folder / "p1"), Options(text=False, certificate=False)).report(
        [f"helpers.fake_targets:{engine}=x", "torch"]
    )
    broken, fine = made.targets
    assert broken.verdict == schema.NOT_COMPARABLE and any(word in broken.reason for word in says.split("|")), (
        broken.reason
    )
    assert fine.verdict == schema.WITHIN, fine.reason
    assert schema.exit_code(made.targets) == 3


def test_a_mistake_of_ours_costs_one_target_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = Run._judge

    def mistaken(self: Run, target: targets.Target, out: schema.TargetResult) -> None:
        if target.spec == "torch[n_batch=7]":
            raise ZeroDivisionError("nothing\nat all")
        judge(self, target, out)

    monkeypatch.setattr(Run, "_judge", mistaken)
    made = Run(open_checkpoint(folder / "p1"), Options(text=False, certificate=False)).report(
        ["torch[n_batch=7]", "torch"]
    )
    assert [t.verdict for t in made.targets] == [schema.NOT_COMPARABLE, schema.WITHIN]
    assert made.targets[0].reason == "gptoss-parity itself failed: ZeroDivisionError: nothing"
    assert "Traceback" in capsys.readouterr().err  # for the one who mends it


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gptoss_adapters.parity.cli import app

    with pytest.raises(SystemExit) as ended:
        app(
            [
                "run",
                str(folder / "p1"),
                "-t",
                "torch",
                "-t",
                "torch=/nowhere",
                "-o",
                str(tmp_path / "out"),
                "--no-text",
            ],
            standalone_mode=False,
        )
    assert ended.value.code == 3
    assert "SAME WITHIN NUMERICS" in capsys.readouterr().out
    report = Report.load(tmp_path / "out" / "report.json")
    assert [t.verdict for t in report.targets] == [schema.WITHIN, schema.NOT_COMPARABLE]
    assert "/nowhere: no such file" in report.targets[1].reason
    assert json.loads((tmp_path / "out" / "report.json").read_text())["version"] == schema.VERSION
    assert report.angle_error and report.angle_error.rounded == [0, 5]
    assert report.repro.endswith("--target torch=/nowhere --no-text")
