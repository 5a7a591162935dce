"""The sections on one target in report.html: suspects, deviations, probes, text, weights, certificate."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_adapters.parity.report.html_pieces import (
    STATE_CLASS,
    render_section,
    render_state,
    render_table,
    safe,
)
from gptoss_adapters.parity.report.schema import (
    FAIL,
    PASS,
    SKIPPED,
    Certificate,
    Check,
    Family,
    TargetResult,
    ToolCall,
    ToolCalls,
    Weights,
)
from gptoss_adapters.parity.report.words import (
    STATE_SYMBOL,
    TOOL_FIELDS,
    certificate_words,
    count,
    deviation_words,
    llama_block,
    null_of,
    number,
    share,
    times,
    tool_counts,
)


def render_suspects(target: TargetResult) -> str:
    rows = [
        [
            f'<code>{safe(s.fault, 80)}</code><span class="what">{safe(s.what)}</span>',
            safe(s.part),
            f'<span class="meter"><i style="width:{100 * min(max(s.score, 0), 1):.0f}%"></i></span>{s.score:.2f}',
            render_state(PASS, "confirmed") if s.confirmed else render_state(SKIPPED, "not confirmed"),
            times(s.excess_left),
            number(s.coefficient),
        ]
        for s in target.suspects[:5]
    ]
    note = (
        '<p class="soft small">Confirmed: with this fault in the reference the excess vanishes in every probe '
        "family. Amount: how much of the fault's own effect is in the difference; 1 is all of it.</p>"
    )
    return render_section(
        "Suspects",
        render_table(
            ["fault", "part", "score", "", "excess left", "amount"], rows, ["any", "", "n", "state", "n", "n"]
        ),
        note if rows else "",
    )


def render_deviations(target: TargetResult) -> str:
    rows = [
        [
            f'<code>{safe(d.fault, 80)}</code><span class="what">{safe(d.effect)}</span>',
            safe(deviation_words(d)),
            safe(d.versions or d.engine),
            safe(d.source),
        ]
        for d in target.deviations
    ]
    return render_section(
        "Known deviations of this engine",
        render_table(["deviation", "in this run", "versions", "source"], rows, ["any", "any", "any", "any"]),
    )


_FAMILY_HEADER = (
    "probe family",
    "excess",
    "KL mean",
    "null",
    "NMSE",
    "null",
    "same top",
    "RMS \u0394p",
    "first off at",
    "prompts / positions",
)


def render_families(families: Sequence[Family]) -> str:
    rows = []
    for f in families:
        m = f.metrics
        forced = " (forced routing)" if f.forced_routing else ""
        bound = "\u2265 " if m.kl_lower_bound else ""
        rows.append(
            [
                f'{safe(f.name)}{forced}<span class="what">{safe(f.what)}</span>',
                render_state(f.verdict, times(f.worst) if f.worst is not None else f.verdict),
                bound + number(m.kl_mean),
                number(null_of(f, "kl_mean")),
                number(m.nmse_gmean),
                number(null_of(f, "nmse_gmean")),
                share(m.same_top),
                share(m.dp_rms),
                "\u2013" if f.first_divergent is None else count(f.first_divergent),
                f"{count(f.prompts)} / {count(f.positions)}",
            ]
        )
    more = "".join(_metrics(f) for f in families)
    more = f"<details><summary>every statistic and every null</summary>{more}</details>" if more else ""
    note = (
        '<p class="soft small">KL in nats; null: the same statistic between the reference and itself with honest '
        "rounding (median over the nulls).</p>"
        if rows
        else ""
    )
    return render_section(
        "Logits, by probe family", render_table(_FAMILY_HEADER, rows, ["any", "state", *["n"] * 8]), note, more
    )


def _metrics(family: Family) -> str:
    """Every statistic of one family beside each null's, under llama.cpp's names."""
    columns = [("target", family.metrics), *family.null.items()]
    blocks = [dict(llama_block(metrics)) for _, metrics in columns]
    rows = [[safe(label), *[safe(block.get(label, "\u2013")) for block in blocks]] for label in blocks[0]]
    table = render_table(["", *[safe(name, 60) for name, _ in columns]], rows, ["", *["n"] * len(columns)])
    return f"<p><b>{safe(family.name)}</b></p>{table}" if table else ""


def render_structural(target: TargetResult) -> str:
    rows = [
        [
            f'{safe(s.name)}<span class="what">{safe(s.detail)}</span>',
            safe(s.expected),
            safe(s.observed),
            render_state(s.verdict),
        ]
        for s in target.structural
    ]
    return render_section(
        "Structural probes", render_table(["probe", "expected", "observed", ""], rows, ["any", "any", "any", "state"])
    )


def render_text_layer(target: TargetResult) -> str:
    if target.text_layer is None:
        return ""
    rows = []
    for c in target.text_layer.checks:
        agree = f"{count(c.same)} of {count(c.count)}" if c.count else "\u2013"
        rows.append(
            [
                f'{safe(c.name)}<span class="what">{safe(c.source)}</span>',
                agree,
                f"{safe(c.detail)}{_failures(c)}",
                render_state(c.verdict),
            ]
        )
    return render_section(
        "Text layer: ids, templates, stops",
        render_table(["check", "agree", "what differs", ""], rows, ["any", "n", "any", "state"]),
    )


def _failures(check: Check) -> str:
    parts = [f"{name}: {same} of {total}" for name, (same, total) in check.families.items() if same < total]
    if not parts and not check.failures:
        return ""
    lines = "".join(f"<pre>{safe(line)}</pre>" for line in check.failures)
    return f"<details><summary>{safe(', '.join(parts) or 'examples')}</summary>{lines}</details>"


def render_tool_calls(calls: ToolCalls | None) -> str:
    if calls is None:
        return ""
    if not calls.cases:
        return render_section("Tool calls", f"<p>{render_state(calls.verdict)} {safe(calls.detail)}</p>")
    labels = list(tool_counts(calls.cases))
    rows = [[_case(case), *[_flag(case, label) for label in labels]] for case in calls.cases]
    note = f"<p>{safe(calls.detail)}</p>" if calls.detail else ""
    return render_section(
        "Answers and tool calls",
        note,
        render_table(["request", *map(safe, labels)], rows, ["any", *["cell"] * len(labels)]),
    )


def _case(case: ToolCall) -> str:
    extra = f"<p>{safe(case.detail)}</p>" if case.detail else ""
    return (
        f"<details><summary>{safe(case.case, 120)}</summary>{extra}"
        f"<p>reference</p><pre>{safe(case.expected, 2000)}</pre>"
        f"<p>target</p><pre>{safe(case.got, 2000)}</pre></details>"
    )


def _flag(case: ToolCall, label: str) -> str:
    value = getattr(case, next(name for name, text in TOOL_FIELDS.items() if text == label))
    if value is None:
        return ""
    return render_state(PASS, "") if value else render_state(FAIL, "differs")


def render_weights(weights: Weights | None) -> str:
    if weights is None:
        return ""
    counts = ", ".join(f"{count(n)} {safe(name)}" for name, n in weights.counts.items())
    lists = "".join(
        f"<details><summary>{safe(title)}: {len(names)}</summary><pre>{safe(chr(10).join(names), 4000)}</pre></details>"
        for title, names in (
            ("different tensors", weights.different),
            ("rounded tensors", weights.rounded),
            ("config", weights.config),
            ("notes", weights.notes),
        )
        if names
    )
    return render_section(
        "Weights",
        f"<p>{render_state(weights.verdict)} {counts}{f' ({weights.nbytes / 1e6:.1f} MB)' if weights.nbytes else ''} "
        f"{safe(weights.detail)}</p>{lists}",
    )


def render_certificate(target: TargetResult) -> str:
    c = target.certificate
    if c is None or not c.faults:
        return ""
    control = (
        f" The negative control, which must not be seen, is at {times(c.control)}." if c.control is not None else ""
    )
    return render_section(
        "Sensitivity certificate",
        f'<p>{safe(certificate_words(target), 2000)}.{control}</p><p class="soft small">Noise: {safe(c.null)}. '
        "Numbers: excess in the family that shows the fault best.</p>",
        _faults(c),
    )


def _faults(certificate: Certificate) -> str:
    items = []
    for f in certificate.faults:
        state, how = SKIPPED, "does not apply"
        if f.applies:
            state = PASS if f.caught else FAIL
            how = f.by if f.excess is None else times(f.excess)
        items.append(
            f'<li title="{safe(f.what)}"><b class="{STATE_CLASS[state]}">{STATE_SYMBOL[state]}</b>'
            f"<span>{safe(f.fault, 60)}</span><i>{safe(how)}</i></li>"
        )
    return f'<ul class="faults">{"".join(items)}</ul>\n'
