"""From evidence to verdict: pure functions of what a report holds and of what the logits said. Nothing is measured
here, and torch is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.schema import Deviation, Suspect, TargetResult


@dataclass(frozen=True, slots=True)
class LogitFindings:
    """What the logits alone say.

    plain_excess: worst excess against the plain reference; excess: against the reference that carries the engine's
    known deviations, where it has some. failed: one of its families fails. fault_present: a fault's effect stands in
    what is left. bitwise: every logit that was kept is that of the reference in the target's own precision.
    """

    plain_excess: float
    excess: float
    failed: bool = False
    fault_present: bool = False
    bitwise: bool = False

    @property
    def differ(self) -> bool:
        return self.failed or self.fault_present


class Decision(NamedTuple):
    """verdict: one of `schema.VERDICTS`; reason: one sentence for it."""

    verdict: str
    reason: str


def decide(result: TargetResult, logits: LogitFindings) -> Decision:
    """The verdict on a target whose evidence is complete."""
    decision = _decide_on_values(result, logits)
    weights = result.weights
    if weights is None or weights.verdict != schema.LOOK or decision.verdict == schema.DIFFERENT:
        return decision
    note = f"{len(weights.rounded)} tensors rounded as declared, judged on the file's own weights"
    return Decision(decision.verdict, f"{decision.reason}; {note}")


def _decide_on_values(result: TargetResult, logits: LogitFindings) -> Decision:
    failures = list_failures(result)
    if logits.differ or failures:
        cause = [f"{_name_cause(result.suspects)}: {logits.excess:.3g} times the noise"] if logits.differ else []
        return Decision(schema.DIFFERENT, "; ".join(cause + failures))
    deviations = [d for d in result.deviations if d.status != schema.ABSENT]
    if deviations:
        return Decision(schema.EXCEPT, "; ".join(map(_describe_deviation, deviations)))
    if logits.bitwise:
        return Decision(schema.SAME, "bit for bit the reference in this precision")
    reason = f"at most {logits.plain_excess:.2g} times what honest rounding gives ({result.null})"
    return Decision(schema.WITHIN, reason)


def list_failures(result: TargetResult) -> list[str]:
    """Everything but the logits that makes a target different, one line each."""
    lines = []
    if result.weights and result.weights.verdict == schema.FAIL:
        names = [*result.weights.different, *result.weights.config]
        lines.append(f"weights or config differ: {', '.join(names[:3]) or result.weights.detail}")
    lines += [f"{s.name}: {s.observed}" for s in result.structural if s.verdict == schema.FAIL]
    if result.greedy and result.greedy.verdict == schema.FAIL:
        lines.append("greedy answers part where the reference's choice is clear")
    if result.text_layer and result.text_layer.verdict == schema.FAIL:
        failed = [c.name for c in result.text_layer.checks if c.verdict == schema.FAIL]
        lines.append("text layer: " + ", ".join(failed))
    if result.tool_calls and result.tool_calls.verdict == schema.FAIL:
        lines.append("tool calls differ")
    costly = [f for f in result.layers.flips if not f.cheap] if result.layers else []
    if costly:
        lines.append(f"the router of layer {costly[0].layer} chose others at a margin of {costly[0].gap:.3g}")
    return lines


def tell_status(present: bool, absent: bool) -> str:
    """A known deviation's status, by whether its effect is resolved as there, as not there, or as neither."""
    if present:
        return schema.CONFIRMED
    return schema.ABSENT if absent else schema.EXPECTED


def _name_cause(suspects: list[Suspect]) -> str:
    """A confirmed suspect before the likeliest one."""
    if not suspects:
        return "no known fault fits"
    named = next((s for s in suspects if s.confirmed), suspects[0])
    return f"{named.what} ({named.fault}, {'confirmed' if named.confirmed else 'not confirmed'})"


def _describe_deviation(d: Deviation) -> str:
    if d.status == schema.CONFIRMED:
        return f"{d.fault}, confirmed: {d.excess_without:.3g} times the noise without it, {d.excess_with:.2g} with it"
    first = d.resolvable_from if d.resolvable_from is not None else (d.longest_position or 0) + 1
    return f"{d.fault}, expected, not resolvable below position {first}"
