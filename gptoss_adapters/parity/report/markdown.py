"""report.md, for a pull request; and the few lines that a terminal shows. From a report's JSON alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from gptoss_adapters.parity.report.schema import FAIL, LOOK, SKIPPED, Check, Report, TargetResult
from gptoss_adapters.parity.report.words import (
    STATE_SYMBOL,
    VERDICT_SYMBOL,
    certificate_words,
    clean,
    count,
    deviation_words,
    family_names,
    headline,
    null_of,
    number,
    share,
    times,
    tool_counts,
    verdict_words,
    worst_verdict,
)

_ACTIVE = re.compile(r"([\\`*_\[\]{}|#~$!])")


def render(report: Report) -> str:
    """The whole document."""
    verdict = worst_verdict(report)
    lines = [f"## {VERDICT_SYMBOL[verdict]} Parity of {_code(report.checkpoint, 80)}: {_t(headline(report))}", ""]
    lines += (
        [f"Against the reference, {_t(report.reference.version or report.reference.engine)}.", ""]
        if report.reference.version or report.reference.engine
        else []
    )
    lines += _matrix(report)
    for target in report.targets:
        lines += _target(target)
    if report.repro:
        lines += ["Run it again:", "", *_fence(report.repro), ""]
    lines.append(
        f"<sub>{_t(report.created)}, seed {report.seed}. Excess: observed over what honest rounding gives; up to "
        "3 is within numerics, above 10 a difference.</sub>"
    )
    return "\n".join(lines) + "\n"


def _t(text: object, limit: int = 300) -> str:
    """Foreign text that stays text: no markup, no HTML, no mention of a person."""
    return _ACTIVE.sub(r"\\\1", escape(clean(str(text), limit), quote=False)).replace("@", "&#64;")


def _code(text: str, limit: int = 200) -> str:
    """As a code span: a fence longer than any run of backticks inside."""
    shown = clean(text, limit).replace("|", "\u2502")
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}" if shown else ""


def _fence(text: str) -> list[str]:
    fence = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return [fence, clean(text, 4000), fence]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *body, ""] if body else []


def _matrix(report: Report) -> list[str]:
    names = family_names(report.targets)
    rows = []
    for target in report.targets:
        by_name = {family.name: family for family in target.families}
        cells = [f"{STATE_SYMBOL[f.verdict]} {times(f.worst)}" if (f := by_name.get(name)) else "" for name in names]
        rows.append(
            [_code(target.name, 60), f"{VERDICT_SYMBOL.get(target.verdict, '?')} {_t(verdict_words(target))}", *cells]
        )
    return _table(["target", "verdict", *map(_t, names)], rows)


def _target(target: TargetResult) -> list[str]:
    lines = [f"### {_code(target.name, 100)}: {_t(verdict_words(target))}", ""]
    if target.reason:
        lines += [_t(target.reason), ""]
    lines += [f"- known deviation {_code(d.fault)}: {_t(deviation_words(d))}" for d in target.deviations]
    lines += [
        f"- suspect {_code(s.fault)} ({_t(s.part)}), score {s.score:.2f}{', confirmed' if s.confirmed else ''}: "
        f"{_t(s.what)}"
        for s in target.suspects[:3]
    ]
    lines += [
        f"- {STATE_SYMBOL[s.verdict]} {_t(s.name)}: expected {_t(s.expected)}, observed {_t(s.observed)}"
        for s in target.structural
        if s.verdict == FAIL
    ]
    if target.text_layer:
        lines += [_check(check) for check in target.text_layer.checks if check.verdict != SKIPPED]
    if target.tool_calls and target.tool_calls.cases:
        counts = ", ".join(
            f"{label} {same}/{total}" for label, (same, total) in tool_counts(target.tool_calls.cases).items()
        )
        lines.append(f"- {STATE_SYMBOL[target.tool_calls.verdict]} answers and tool calls: {counts}")
    if target.weights and target.weights.counts:
        lines.append(
            f"- {STATE_SYMBOL[target.weights.verdict]} weights: "
            f"{', '.join(f'{n} {_t(name)}' for name, n in target.weights.counts.items())}"
        )
    if words := certificate_words(target):
        lines.append(f"- sensitivity: {_t(words, 1000)}")
    return [*lines, "", *_details(target)]


def _check(check: Check) -> str:
    detail = f" ({_t(check.detail)})" if check.verdict in (LOOK, FAIL) and check.detail else ""
    return (
        f"- {STATE_SYMBOL[check.verdict]} {_t(check.name)}: {count(check.same)} of {count(check.count)} agree{detail}"
    )


def _details(target: TargetResult) -> list[str]:
    if not target.families:
        return []
    rows = []
    for f in target.families:
        m = f.metrics
        rows.append(
            [
                _t(f.name),
                f"{'≥ ' if m.kl_lower_bound else ''}{number(m.kl_mean)}",
                number(null_of(f, "kl_mean")),
                number(m.nmse_gmean),
                number(null_of(f, "nmse_gmean")),
                share(m.same_top),
                times(f.worst),
                f"{STATE_SYMBOL[f.verdict]} {f.verdict}",
            ]
        )
    table = _table(["probe family", "KL mean", "null", "NMSE", "null", "same top", "excess", ""], rows)
    return [
        "<details><summary>Statistics by probe family</summary>",
        "",
        *table,
        f"Noise: {_t(target.null)}",
        "",
        "</details>",
        "",
    ]


# A terminal -----------------------------------------------------------------------------------------------------------


def summary(report: Report, colour: bool = False) -> str:
    """A few lines per target: verdict, why, and what needs attention."""
    lines = []
    for target in report.targets:
        head = f"{VERDICT_SYMBOL.get(target.verdict, '?')} {clean(target.name, 80)}: {verdict_words(target)}"
        lines.append(f"\033[1m{head}\033[0m" if colour else head)
        if target.reason:
            lines.append(f"    {clean(target.reason)}")
        lines += [f"    known deviation {clean(d.fault)}: {deviation_words(d)}" for d in target.deviations]
        lines += [
            f"    suspect {clean(s.fault)} ({s.score:.2f}{', confirmed' if s.confirmed else ''}): {clean(s.what)}"
            for s in target.suspects[:3]
        ]
        if target.families:
            lines.append(
                "    "
                + ", ".join(f"{clean(f.name, 40)} {STATE_SYMBOL[f.verdict]} {times(f.worst)}" for f in target.families)
            )
        lines += [
            f"    {STATE_SYMBOL[s.verdict]} {clean(s.name)}: expected {clean(s.expected)}, observed {clean(s.observed)}"
            for s in target.structural
            if s.verdict == FAIL
        ]
        if target.text_layer:
            lines += [
                f"    {STATE_SYMBOL[c.verdict]} {clean(c.name)}: {c.same} of {c.count} "
                f"agree{f' ({clean(c.detail)})' if c.detail else ''}"
                for c in target.text_layer.checks
                if c.verdict in (LOOK, FAIL)
            ]
        if target.tool_calls and target.tool_calls.verdict in (LOOK, FAIL):
            lines.append(
                f"    {STATE_SYMBOL[target.tool_calls.verdict]} answers and tool calls: "
                f"{clean(target.tool_calls.detail) or 'see the report'}"
            )
        if words := certificate_words(target):
            lines.append(f"    {clean(words, 600)}")
    return "\n".join(lines)
