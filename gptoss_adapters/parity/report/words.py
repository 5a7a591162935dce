"""What every rendering of a report shares: words, symbols and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from gptoss_harmony.view import printable

from gptoss_adapters.parity.report.measurements import Metrics
from gptoss_adapters.parity.report.schema import (
    ABSENT,
    CONFIRMED,
    DIFFERENT,
    EXCEPT,
    EXPECTED,
    FAIL,
    LOOK,
    NOT_COMPARABLE,
    PASS,
    SAME,
    SKIPPED,
    WITHIN,
    Deviation,
    Family,
    Report,
    TargetResult,
    ToolCall,
)

VERDICT_SYMBOL = {SAME: "=", WITHIN: "\u2248", EXCEPT: "\u2248\u204e", DIFFERENT: "\u2260", NOT_COMPARABLE: "?"}
STATE_SYMBOL = {PASS: "\u2713", LOOK: "\u25d0", FAIL: "\u2715", SKIPPED: "\u2013"}
VERDICT_MEANS = {
    SAME: "bit for bit",
    WITHIN: "no more apart than honest rounding",
    EXCEPT: "known deviations of this engine only",
    DIFFERENT: "not the same model, or not computed right",
    NOT_COMPARABLE: "something was missing",
}
STATUS_MEANS = {
    CONFIRMED: "confirmed",
    EXPECTED: "expected, not resolvable above this run's noise",
    ABSENT: "not there: it would have been seen",
}
TOOL_FIELDS = {
    "name_equal": "name",
    "arguments_equal": "arguments",
    "channel_equal": "channel",
    "recipient_equal": "recipient",
    "content_type_equal": "type",
    "stream_equal": "streamed",
    "round_trip_equal": "round trip",
    "server_equal": "own endpoint",
}
DASH = "\u2013"
_ORDER = (DIFFERENT, NOT_COMPARABLE, EXCEPT, WITHIN, SAME)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; powers of ten where that is shorter to read."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, _, power = f"{value:.{max(digits - 2, 0)}e}".partition("e")
        return f"{mantissa}e{int(power)}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.0f}"


def times(value: float | None) -> str:
    return DASH if value is None else f"{number(value)}\u00d7"


def share(value: float | None) -> str:
    if value is None:
        return DASH
    percent = 100 * value
    return f"{percent:.1f} %" if abs(percent) >= 1 or percent == 0 else f"{number(percent, 2)} %"


def count(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def clean(text: str, limit: int = 400) -> str:
    """Foreign text on one line: control characters and marks of direction made visible, cut at `limit`."""
    shown = printable(text).replace("\n", " \u23ce ").replace("\t", " ")
    return shown if len(shown) <= limit else shown[: limit - 1] + "\u2026"


def null_of(family: Family, name: str) -> float | None:
    """The median over the nulls of one statistic."""
    found = [value for null in family.null.values() if (value := getattr(null, name)) is not None]
    return median(found) if found else None


def family_names(targets: Iterable[TargetResult]) -> list[str]:
    """Every family that any target has, in the order in which they come."""
    return list(dict.fromkeys(family.name for target in targets for family in target.families))


def worst_verdict(report: Report) -> str:
    """The verdict that decides the exit code."""
    found = {target.verdict for target in report.targets}
    return next((verdict for verdict in _ORDER if verdict in found), NOT_COMPARABLE)


def headline(report: Report) -> str:
    """One line for the whole run: the verdict of its only target, or how many have which."""
    if len(report.targets) == 1:
        return verdict_words(report.targets[0])
    found = [target.verdict for target in report.targets]
    return (
        ", ".join(f"{found.count(verdict)} {verdict}" for verdict in _ORDER if verdict in found)
        or "nothing was compared"
    )


def verdict_words(target: TargetResult) -> str:
    """The verdict with what it names: the deviations, or the first suspect."""
    if target.verdict == EXCEPT and target.deviations:
        named = [
            f"{d.fault} ({STATUS_MEANS.get(d.status, d.status).partition(',')[0]})"
            for d in target.deviations
            if d.status != ABSENT
        ]
        return f"{EXCEPT} {', '.join(map(clean, named))}" if named else EXCEPT
    if target.verdict == DIFFERENT and target.suspects:
        first = target.suspects[0]
        return f"{DIFFERENT}: {clean(first.fault)} {'confirmed' if first.confirmed else 'suspected'}"
    return target.verdict


def deviation_words(deviation: Deviation) -> str:
    """What this run says of a known deviation."""
    if deviation.status == EXPECTED:
        below = (
            deviation.resolvable_from
            if deviation.resolvable_from is not None
            else (deviation.longest_position or 0) + 1
        )
        return f"expected, not resolvable below position {count(below)}"
    if deviation.status == CONFIRMED and deviation.excess_without is not None:
        return (
            f"confirmed: excess {times(deviation.excess_without)} without it in the reference, "
            f"{times(deviation.excess_with)} with it"
        )
    return STATUS_MEANS.get(deviation.status, deviation.status)


def certificate_words(target: TargetResult) -> str:
    """How many of the seeded faults this run would have seen."""
    certificate = target.certificate
    if certificate is None:
        return ""
    missed = [fault.fault for fault in certificate.faults if fault.applies and not fault.caught]
    text = f"{certificate.caught} of {certificate.total} seeded faults would have been seen above this noise"
    return text + (f"; not seen: {', '.join(missed)}" if missed else "")


def tool_counts(cases: Iterable[ToolCall]) -> dict[str, tuple[int, int]]:
    """Per compared part of a call: (equal, compared)."""
    listed = list(cases)
    out = {}
    for name, label in TOOL_FIELDS.items():
        values = [getattr(case, name) for case in listed if getattr(case, name) is not None]
        if values:
            out[label] = (sum(values), len(values))
    return out


def llama_block(metrics: Metrics) -> list[tuple[str, str]]:
    """The statistics under llama.cpp's names, so that they can be set beside its own."""
    rows = [
        (
            "Mean KLD",
            number(metrics.kl_mean) + (f" \u00b1 {number(metrics.kl_se, 2)}" if metrics.kl_se is not None else ""),
        ),
        ("Maximum KLD", number(metrics.kl_max)),
        ("99.9% KLD", number(metrics.kl_p999)),
        ("99% KLD", number(metrics.kl_p99)),
        ("95% KLD", number(metrics.kl_p95)),
        ("Median KLD", number(metrics.kl_median)),
        ("Mean \u0394p", share(metrics.dp_mean)),
        ("RMS \u0394p", share(metrics.dp_rms)),
        ("Same top p", share(metrics.same_top)),
        ("Mean ln(PPL(Q)/PPL(base))", number(metrics.ln_ppl_ratio)),
        ("NMSE median", number(metrics.nmse_median)),
        ("NMSE 99%", number(metrics.nmse_p99)),
        ("NMSE max", number(metrics.nmse_max)),
        ("\u0394logp mean", number(metrics.dlp_mean)),
        ("\u0394logp RMS", number(metrics.dlp_rms)),
        ("Top-10 overlap", share(metrics.overlap_10)),
    ]
    return [(label, value) for label, value in rows if value != DASH]
