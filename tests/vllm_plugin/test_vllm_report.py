"""`python -m gptoss_adapters.vllm_plugin` beside the real vLLM: what it says of this machine must be what
`register()` then does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend("vllm")
COMMAND = [sys.executable, "-m", "gptoss_adapters.vllm_plugin"]


def clean() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GPTOSS_ADAPTERS_") and k != "VLLM_PLUGINS"}


def test_as_json_it_is_what_this_machine_gets() -> None:
    done = subprocess.run([*COMMAND, "--json"], env=clean(), capture_output=True, text=True, timeout=200)
    found = json.loads(done.stdout)
    assert (
        done.returncode == 0
        and found["machine"]["platform"] == "cpu"
        and found["machine"]["vllm"].startswith("0.32.0 (vllm")
    )
    rows = {row["name"]: row for row in found["rows"]}
    assert all(rows[name]["state"] == "yes" for name in ("quantization", "registry", "harmony_hooks")), rows
    dtypes = [*(["bfloat16"] if found["machine"]["amx"] == "no" else []), "float16", "float32"]
    assert rows["quantization"]["why"].endswith(f"here for {', '.join(dtypes)}")
    assert found["switches"] == {}


def test_as_a_table_it_has_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_adapters.vllm_plugin.__main__ import format_table
    from gptoss_adapters.vllm_plugin.report import make_report

    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "off")
    lines = [" ".join(line.split()) for line in format_table(make_report()).splitlines()]
    assert "GPTOSS_ADAPTERS_VLLM off" in lines
    for name in ("quantization", "registry", "harmony_hooks"):
        assert f"{name} no GPTOSS_ADAPTERS_VLLM=off" in lines, lines


def test_each_reason_to_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from gptoss_adapters.vllm_plugin.report import make_report

    def states() -> set[tuple[str, str]]:
        return {(row.state, row.why) for row in make_report().rows if row.name != "vllm serve"}

    for name in ("GPTOSS_ADAPTERS_VLLM", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    assert {state for state, _ in states()} == {"yes"}
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert states() == {("no", "VLLM_PLUGINS=another does not name gptoss_adapters")}
    monkeypatch.setenv("VLLM_PLUGINS", "another,gptoss_adapters")
    assert {state for state, _ in states()} == {"yes"}
    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    ((state, why),) = states()
    assert state == "no" and "vLLM 0.99.1 is not one of the versions it was tested with" in why
    monkeypatch.setenv("GPTOSS_ADAPTERS_VLLM", "force")
    assert {state for state, _ in states()} == {"yes"}
