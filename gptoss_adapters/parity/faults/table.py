"""All seeded faults, by name: 41 and one negative control, numbered as in the method sheet.

    >>> find_fault("win_plus1").apply(model)(ids)

What else files can get wrong is in `files.py`. The first position that differs hints at the part: 0 sinks, bias,
experts, norm, codec, grouped heads, YaRN's concentration; 1 RoPE's frequencies; W-1 a window too short; W one too long,
absent, or on the wrong layers.
"""

from __future__ import annotations

from gptoss_adapters.errors import UsageError
from gptoss_adapters.parity.faults import attention, experts
from gptoss_adapters.parity.faults.fault import Fault
from gptoss_adapters.parity.faults.files import file_faults

FAULTS: tuple[type[Fault], ...] = (
    attention.WinPlus1,
    attention.WinMinus1,
    attention.WinParity,
    attention.WinAll,
    attention.WinNone,
    attention.SinkDrop,
    attention.SinkZero,
    attention.SinkRoll,
    attention.SinkScaled,
    attention.NoYarn,
    attention.NoYarnConc,
    attention.YarnTruncate,
    attention.LinearInterp,
    attention.YarnFactorX2,
    attention.RopeInterleaved,
    attention.GqaTile,
    attention.QkvBiasDrop,
    attention.KBiasDrop,
    attention.OBiasDrop,
    attention.RouterBiasDrop,
    experts.SoftmaxBeforeTopk,
    experts.TopkMinus1,
    experts.SigmoidGate,
    experts.NibbleSwap,
    experts.NibbleGgmlHalf,
    experts.ScaleOff1,
    experts.ScaleShift1Block,
    experts.Fp4LutHalf,
    experts.W1ScaleOff1OneExpert,
    experts.GateUpSwap,
    experts.GateUpHalf,
    experts.NoClamp,
    experts.ClampGluBoth,
    experts.ClampGluOnly,
    experts.Alpha1,
    experts.NoPlus1,
    experts.Mlp1BiasDrop,
    experts.Mlp2BiasDrop,
    attention.Eps1e4,
    attention.Eps1e6,
    attention.FinalNormNoGain,
)
CONTROL = attention.PosPlus1()


def all_faults() -> dict[str, Fault]:
    """The 41, by name, in the sheet's order."""
    return {kind.name: kind() for kind in FAULTS}


def find_fault(name: str) -> Fault:
    """One of the 41, or of the other known mistakes. Raises UsageError."""
    known = all_faults() | {f.name: f for f in file_faults()} | {CONTROL.name: CONTROL}
    if name not in known:
        raise UsageError(f"unknown fault {name}", hint="see `gptoss-parity faults`")
    return known[name]
