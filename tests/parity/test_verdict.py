"""The verdict as a function of the evidence, case by case; no engine, no model, no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gptoss_adapters.parity.report import schema
from gptoss_adapters.parity.report.measurements import Flip, Layers
from gptoss_adapters.parity.report.schema import (
    Check,
    Deviation,
    Greedy,
    Structural,
    Suspect,
    TargetResult,
    TextLayer,
    ToolCalls,
    Weights,
)
from gptoss_adapters.parity.verdict import LogitFindings, decide, list_failures, tell_status

CLEAN = LogitFindings(1.234, 1.234)
FAILED = LogitFindings(4321.0, 55.5, failed=True)
PRESENT = LogitFindings(1.5, 1.25, fault_present=True)
BITWISE = LogitFindings(1.0, 1.0, bitwise=True)
CONFIRMED = Deviation("yarn_truncate", schema.CONFIRMED, excess_without=1234.5, excess_with=1.26)
EXPECTED = Deviation("yarn_truncate", schema.EXPECTED, resolvable_from=96, longest_position=130)
NOWHERE = Deviation("yarn_truncate", schema.EXPECTED, resolvable_from=None, longest_position=130)
ABSENT = Deviation("yarn_truncate", schema.ABSENT)
LIKELY, SURE = (
    Suspect("no_yarn", False, 0.9, what="plain RoPE"),
    Suspect("sink_drop", True, 0.8, what="sink term missing"),
)
ROUNDED = Weights(rounded=["a: bf16", "b: bf16"], verdict=schema.LOOK)
FAILED_CHECK = TextLayer([Check("tokenizer", schema.PASS), Check("stop ids", schema.FAIL)], schema.FAIL)


def result(**evidence: object) -> TargetResult:
    return TargetResult("torch", "torch", schema.NOT_COMPARABLE, null="bfloat16", **evidence)  # type: ignore[arg-type]


CASES = [
    # the logits alone
    ("within", result(), CLEAN, schema.WITHIN, "at most 1.2 times what honest rounding gives (bfloat16)"),
    ("bit for bit", result(), BITWISE, schema.SAME, "bit for bit the reference in this precision"),
    ("far off", result(), FAILED, schema.DIFFERENT, "no known fault fits: 55.5 times the noise"),
    (
        "the likeliest suspect",
        result(suspects=[LIKELY]),
        FAILED,
        schema.DIFFERENT,
        "plain RoPE (no_yarn, not confirmed): 55.5 times the noise",
    ),
    (
        "a confirmed one goes before it",
        result(suspects=[LIKELY, SURE]),
        FAILED,
        schema.DIFFERENT,
        "sink term missing (sink_drop, confirmed): 55.5 times the noise",
    ),
    (
        "a fault's effect within the noise",
        result(suspects=[SURE]),
        PRESENT,
        schema.DIFFERENT,
        "sink term missing (sink_drop, confirmed): 1.25 times the noise",
    ),
    # known deviations
    (
        "confirmed",
        result(deviations=[CONFIRMED]),
        CLEAN,
        schema.EXCEPT,
        "yarn_truncate, confirmed: 1.23e+03 times the noise without it, 1.3 with it",
    ),
    (
        "expected",
        result(deviations=[EXPECTED]),
        CLEAN,
        schema.EXCEPT,
        "yarn_truncate, expected, not resolvable below position 96",
    ),
    (
        "expected, resolvable nowhere",
        result(deviations=[NOWHERE]),
        CLEAN,
        schema.EXCEPT,
        "yarn_truncate, expected, not resolvable below position 131",
    ),
    ("deviation before bitwise", result(deviations=[CONFIRMED]), BITWISE, schema.EXCEPT, None),
    ("an absent one counts for nothing", result(deviations=[ABSENT]), BITWISE, schema.SAME, None),
    ("something else beside it", result(deviations=[CONFIRMED]), FAILED, schema.DIFFERENT, None),
    # weights
    (
        "rounded, and judged on the file's own",
        result(weights=ROUNDED),
        CLEAN,
        schema.WITHIN,
        "at most 1.2 times what honest rounding gives (bfloat16); 2 tensors rounded as declared, judged on the "
        "file's own weights",
    ),
    (
        "rounded and different",
        result(weights=ROUNDED),
        FAILED,
        schema.DIFFERENT,
        "no known fault fits: 55.5 times the noise",
    ),
    ("equal", result(weights=Weights(verdict=schema.PASS)), BITWISE, schema.SAME, None),
    (
        "other bytes",
        result(weights=Weights(different=["a", "b", "c", "d"], verdict=schema.FAIL)),
        CLEAN,
        schema.DIFFERENT,
        "weights or config differ: a, b, c",
    ),
    (
        "not to be compared",
        result(weights=Weights(detail="no such tensor", verdict=schema.FAIL)),
        CLEAN,
        schema.DIFFERENT,
        "weights or config differ: no such tensor",
    ),
    # everything else
    (
        "behaviour",
        result(
            structural=[Structural("sink at T=1", schema.PASS), Structural("chunked", schema.FAIL, observed="died")]
        ),
        CLEAN,
        schema.DIFFERENT,
        "chunked: died",
    ),
    (
        "greedy answers",
        result(greedy=Greedy(verdict=schema.FAIL)),
        BITWISE,
        schema.DIFFERENT,
        "greedy answers part where the reference's choice is clear",
    ),
    ("text", result(text_layer=FAILED_CHECK), CLEAN, schema.DIFFERENT, "text layer: stop ids"),
    ("text, known differences", result(text_layer=TextLayer([], schema.LOOK)), CLEAN, schema.WITHIN, None),
    ("tool calls", result(tool_calls=ToolCalls(verdict=schema.FAIL)), CLEAN, schema.DIFFERENT, "tool calls differ"),
    (
        "the router",
        result(layers=Layers(flips=[Flip(2, 0, 5, 0.25, 0.1, cheap=False), Flip(3, 0, 6, 0.01, 0.1)])),
        CLEAN,
        schema.DIFFERENT,
        "the router of layer 2 chose others at a margin of 0.25",
    ),
    ("cheap flips", result(layers=Layers(flips=[Flip(3, 0, 6, 0.01, 0.1)])), CLEAN, schema.WITHIN, None),
    (
        "the logits come first",
        result(tool_calls=ToolCalls(verdict=schema.FAIL), suspects=[SURE]),
        FAILED,
        schema.DIFFERENT,
        "sink term missing (sink_drop, confirmed): 55.5 times the noise; tool calls differ",
    ),
]


@pytest.mark.parametrize(("evidence", "logits", "verdict", "reason"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_case(evidence: TargetResult, logits: LogitFindings, verdict: str, reason: str | None) -> None:
    before = replace(evidence)
    decision = decide(evidence, logits)
    assert decision.verdict == verdict
    assert reason is None or decision.reason == reason
    assert evidence == before  # nothing is written


def test_failures_are_listed_in_the_report_s_order() -> None:
    evidence = result(
        weights=Weights(config=["rope_theta"], verdict=schema.FAIL),
        structural=[Structural("s", schema.FAIL, observed="o")],
        greedy=Greedy(verdict=schema.FAIL),
        text_layer=FAILED_CHECK,
        tool_calls=ToolCalls(verdict=schema.FAIL),
    )
    words: Sequence[str] = [line.split()[0] for line in list_failures(evidence)]
    assert words == ["weights", "s:", "greedy", "text", "tool"]
    assert list_failures(result()) == []


@pytest.mark.parametrize(
    ("present", "absent", "status"),
    [(True, False, schema.CONFIRMED), (False, True, schema.ABSENT), (False, False, schema.EXPECTED)],
)
def test_the_status_of_a_known_deviation(present: bool, absent: bool, status: str) -> None:
    assert tell_status(present, absent) == status


def test_no_torch_is_needed() -> None:
    code = "import sys, gptoss_adapters.parity.verdict; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
