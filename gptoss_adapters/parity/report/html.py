"""report.html from a report's JSON alone: one file, no script, nothing fetched; every foreign text is escaped.

The order follows the reader's questions: is it the same, where not, by how much more than rounding, what would this run
have seen, and how do I run it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from gptoss_adapters.parity.report import charts
from gptoss_adapters.parity.report.schema import (
    DIFFERENT,
    EXCEPT,
    FAIL,
    LOOK,
    NOT_COMPARABLE,
    PASS,
    SKIPPED,
    Certificate,
    Check,
    Family,
    Identity,
    Report,
    TargetResult,
    ToolCall,
    ToolCalls,
    Weights,
)
from gptoss_adapters.parity.report.style import CSP, CSS
from gptoss_adapters.parity.report.words import (
    STATE_SYMBOL,
    VERDICT_MEANS,
    VERDICT_SYMBOL,
    certificate_words,
    clean,
    count,
    deviation_words,
    family_names,
    headline,
    llama_block,
    null_of,
    number,
    share,
    times,
    tool_counts,
    verdict_words,
    worst_verdict,
)

_STATE_CLASS = {PASS: "good", LOOK: "look", FAIL: "fail", SKIPPED: "none"}
_VERDICT_CLASS = {DIFFERENT: "fail", NOT_COMPARABLE: "none", EXCEPT: "look"}


def render(report: Report) -> str:
    """The whole page."""
    body = [_top(report)]
    body += [_target(target) for target in report.targets]
    body += [_yarn(report), _identity(report)]
    title = f"Parity: {clean(report.checkpoint, 80)}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta '
        f'http-equiv="Content-Security-Policy" content="{CSP}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" '
        f'content="no-referrer">\n<title>{_t(title)}</title>\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(part for part in body if part)}</main>\n</body>\n</html>\n"
    )


# Small pieces ---------------------------------------------------------------------------------------------------------


def _t(text: object, limit: int = 400) -> str:
    """Foreign or own text, safe in content and in attributes."""
    return escape(clean(str(text), limit), quote=True)


def _badge(verdict: str, words: str | None = None) -> str:
    kind = _VERDICT_CLASS.get(verdict, "good")
    return (
        f'<span class="badge {kind}"><span aria-hidden="true">{VERDICT_SYMBOL.get(verdict, "?")}</span> '
        f"{_t(words or verdict)}</span>"
    )


def _state(state: str, words: str | None = None) -> str:
    return (
        f'<span class="chip {_STATE_CLASS.get(state, "none")}">{STATE_SYMBOL.get(state, "?")} '
        f"{_t(state if words is None else words)}</span>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
    """Cells are HTML already. classes: one per column, "n" for numbers."""
    head = "".join(f'<th class="{c}">{h}</th>' for h, c in zip(header, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{c}">{cell}</td>' for cell, c in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'
        if body
        else ""
    )


def _figure(figure: charts.Figure) -> str:
    table = _table(
        [_t(h) for h in figure.header], [[_t(cell) for cell in row] for row in figure.rows], ["n"] * len(figure.header)
    )
    return (
        f"<figure><figcaption>{_t(figure.title)}</figcaption><p>{_t(figure.reading)}</p>{figure.svg}"
        f"<details><summary>the numbers</summary>{table}</details></figure>\n"
    )


def _section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<h3>{_t(title)}</h3>\n{body}" if body else ""


# The page -------------------------------------------------------------------------------------------------------------


def _top(report: Report) -> str:
    """The verdict first, then targets x probe families."""
    verdict = worst_verdict(report)
    lines = "".join(f"<p>{_badge(t.verdict)} <b>{_t(t.name, 120)}</b> {_t(t.reason)}</p>" for t in report.targets)
    words = headline(report)
    means = "; ".join(
        f"{_t(v)}: {_t(VERDICT_MEANS[v])}"
        for v in dict.fromkeys(t.verdict for t in report.targets)
        if v in VERDICT_MEANS
    )
    kind = _VERDICT_CLASS.get(verdict, "good")
    return (
        f'<h1>Is it the same model? <code>{_t(report.checkpoint, 160)}</code></h1>\n<section class="card">'
        f'<p class="verdict"><span class="badge {kind}">{VERDICT_SYMBOL[verdict]}</span> '
        f'{_t(words)}</p>{lines}<p class="soft small">{means}</p>'
        f'{_matrix(report)}<p class="soft small">A number is the excess: what was observed, divided by what '
        "honest rounding gives on the same prompts. "
        f"Up to 3 is within numerics ({STATE_SYMBOL[PASS]}), up to 10 deserves a look ({STATE_SYMBOL[LOOK]}), "
        f"more is a difference ({STATE_SYMBOL[FAIL]}).</p></section>\n"
    )


def _matrix(report: Report) -> str:
    names = family_names(report.targets)
    if not names:
        return ""
    rows = []
    for target in report.targets:
        by_name = {family.name: family for family in target.families}
        cells = [
            _state(f.verdict, times(f.worst) if f.worst is not None else "") if (f := by_name.get(name)) else ""
            for name in names
        ]
        rows.append([f"<b>{_t(target.name, 80)}</b>", *cells])
    return _section("Targets and probes", _table(["target", *map(_t, names)], rows, ["any", *["cell"] * len(names)]))


def _target(target: TargetResult) -> str:
    parts = [
        f'<div class="head"><h2>{_t(target.name, 160)}</h2>{_badge(target.verdict, verdict_words(target))}</div>'
        f"<p>{_t(target.reason)}</p>",
        '<p class="soft small">Judged by: '
        f"{_t(target.null or 'no null: nothing was computed')}{_seconds(target.seconds)}</p>",
        _suspects(target),
        _deviations(target),
        _families(target.families),
        f'<div class="figures">{"".join(map(_figure, charts.figures(target)))}</div>',
        _structural(target),
        _text_layer(target),
        _tool_calls(target.tool_calls),
        _weights(target.weights),
        _certificate(target),
        _who(target.identity),
    ]
    return f'<section class="card">{"".join(parts)}</section>\n'


def _seconds(seconds: float | None) -> str:
    return f"; {seconds:.1f} s" if seconds is not None else ""


def _suspects(target: TargetResult) -> str:
    rows = [
        [
            f'<code>{_t(s.fault, 80)}</code><span class="what">{_t(s.what)}</span>',
            _t(s.part),
            f'<span class="meter"><i style="width:{100 * min(max(s.score, 0), 1):.0f}%"></i></span>{s.score:.2f}',
            _state(PASS, "confirmed") if s.confirmed else _state(SKIPPED, "not confirmed"),
            times(s.excess_left),
            number(s.coefficient),
        ]
        for s in target.suspects[:5]
    ]
    note = (
        '<p class="soft small">Confirmed: with this fault in the reference the excess vanishes in every probe '
        "family. Amount: how much of the fault's own effect is in the difference; 1 is all of it.</p>"
    )
    return _section(
        "Suspects",
        _table(["fault", "part", "score", "", "excess left", "amount"], rows, ["any", "", "n", "state", "n", "n"]),
        note if rows else "",
    )


def _deviations(target: TargetResult) -> str:
    rows = [
        [
            f'<code>{_t(d.fault, 80)}</code><span class="what">{_t(d.effect)}</span>',
            _t(deviation_words(d)),
            _t(d.versions or d.engine),
            _t(d.source),
        ]
        for d in target.deviations
    ]
    return _section(
        "Known deviations of this engine",
        _table(["deviation", "in this run", "versions", "source"], rows, ["any", "any", "any", "any"]),
    )


def _families(families: Sequence[Family]) -> str:
    rows = []
    for f in families:
        m = f.metrics
        bound = "\u2265 " if m.kl_lower_bound else ""
        rows.append(
            [
                f'{_t(f.name)}{" (forced routing)" if f.forced_routing else ""}<span class="what">{_t(f.what)}</span>',
                _state(f.verdict, times(f.worst) if f.worst is not None else f.verdict),
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
    header = [
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
    ]
    more = "".join(_metrics(f) for f in families)
    more = f"<details><summary>every statistic and every null</summary>{more}</details>" if more else ""
    note = (
        '<p class="soft small">KL in nats; null: the same statistic between the reference and itself with honest '
        "rounding (median over the nulls).</p>"
        if rows
        else ""
    )
    return _section("Logits, by probe family", _table(header, rows, ["any", "state", *["n"] * 8]), note, more)


def _metrics(family: Family) -> str:
    """Every statistic of one family beside each null's, under llama.cpp's names."""
    columns = [("target", family.metrics), *family.null.items()]
    blocks = [dict(llama_block(metrics)) for _, metrics in columns]
    rows = [[_t(label), *[_t(block.get(label, "\u2013")) for block in blocks]] for label in blocks[0]]
    table = _table(["", *[_t(name, 60) for name, _ in columns]], rows, ["", *["n"] * len(columns)])
    return f"<p><b>{_t(family.name)}</b></p>{table}" if table else ""


def _structural(target: TargetResult) -> str:
    rows = [
        [f'{_t(s.name)}<span class="what">{_t(s.detail)}</span>', _t(s.expected), _t(s.observed), _state(s.verdict)]
        for s in target.structural
    ]
    return _section(
        "Structural probes", _table(["probe", "expected", "observed", ""], rows, ["any", "any", "any", "state"])
    )


def _text_layer(target: TargetResult) -> str:
    if target.text_layer is None:
        return ""
    rows = []
    for c in target.text_layer.checks:
        agree = f"{count(c.same)} of {count(c.count)}" if c.count else "\u2013"
        rows.append(
            [
                f'{_t(c.name)}<span class="what">{_t(c.source)}</span>',
                agree,
                f"{_t(c.detail)}{_failures(c)}",
                _state(c.verdict),
            ]
        )
    return _section(
        "Text layer: ids, templates, stops",
        _table(["check", "agree", "what differs", ""], rows, ["any", "n", "any", "state"]),
    )


def _failures(check: Check) -> str:
    parts = [f"{name}: {same} of {total}" for name, (same, total) in check.families.items() if same < total]
    if not parts and not check.failures:
        return ""
    lines = "".join(f"<pre>{_t(line)}</pre>" for line in check.failures)
    return f"<details><summary>{_t(', '.join(parts) or 'examples')}</summary>{lines}</details>"


def _tool_calls(calls: ToolCalls | None) -> str:
    if calls is None:
        return ""
    if not calls.cases:
        return _section("Tool calls", f"<p>{_state(calls.verdict)} {_t(calls.detail)}</p>")
    labels = list(tool_counts(calls.cases))
    rows = [[_case(case), *[_flag(case, label) for label in labels]] for case in calls.cases]
    note = f"<p>{_t(calls.detail)}</p>" if calls.detail else ""
    return _section(
        "Answers and tool calls", note, _table(["request", *map(_t, labels)], rows, ["any", *["cell"] * len(labels)])
    )


def _case(case: ToolCall) -> str:
    extra = f"<p>{_t(case.detail)}</p>" if case.detail else ""
    return (
        f"<details><summary>{_t(case.case, 120)}</summary>{extra}"
        f"<p>reference</p><pre>{_t(case.expected, 2000)}</pre>"
        f"<p>target</p><pre>{_t(case.got, 2000)}</pre></details>"
    )


def _flag(case: ToolCall, label: str) -> str:
    from gptoss_adapters.parity.report.words import TOOL_FIELDS

    value = getattr(case, next(name for name, text in TOOL_FIELDS.items() if text == label))
    return "" if value is None else _state(PASS, "") if value else _state(FAIL, "differs")


def _weights(weights: Weights | None) -> str:
    if weights is None:
        return ""
    counts = ", ".join(f"{count(n)} {_t(name)}" for name, n in weights.counts.items())
    lists = "".join(
        f"<details><summary>{_t(title)}: {len(names)}</summary><pre>{_t(chr(10).join(names), 4000)}</pre></details>"
        for title, names in (
            ("different tensors", weights.different),
            ("rounded tensors", weights.rounded),
            ("config", weights.config),
            ("notes", weights.notes),
        )
        if names
    )
    return _section(
        "Weights",
        f"<p>{_state(weights.verdict)} {counts}{f' ({weights.nbytes / 1e6:.1f} MB)' if weights.nbytes else ''} "
        f"{_t(weights.detail)}</p>{lists}",
    )


def _certificate(target: TargetResult) -> str:
    c = target.certificate
    if c is None or not c.faults:
        return ""
    control = (
        f" The negative control, which must not be seen, is at {times(c.control)}." if c.control is not None else ""
    )
    return _section(
        "Sensitivity certificate",
        f'<p>{_t(certificate_words(target), 2000)}.{control}</p><p class="soft small">Noise: {_t(c.null)}. '
        "Numbers: excess in the family that shows the fault best.</p>",
        _faults(c),
    )


def _faults(certificate: Certificate) -> str:
    items = []
    for f in certificate.faults:
        state = SKIPPED if not f.applies else PASS if f.caught else FAIL
        how = "does not apply" if not f.applies else times(f.excess) if f.excess is not None else f.by
        items.append(
            f'<li title="{_t(f.what)}"><b class="{_STATE_CLASS[state]}">{STATE_SYMBOL[state]}</b>'
            f"<span>{_t(f.fault, 60)}</span><i>{_t(how)}</i></li>"
        )
    return f'<ul class="faults">{"".join(items)}</ul>\n'


def _yarn(report: Report) -> str:
    if report.angle_error is None or not report.angle_error.positions:
        return ""
    figures = "".join(map(_figure, charts.angle(report.angle_error)))
    return (
        '<section class="card"><h2>Rounded YaRN bounds at long contexts</h2><p>Some engines round the bounds of '
        "the YaRN ramp. This is what that costs, computed to the longest position of the model.</p><div "
        f'class="figures">{figures}</div></section>\n'
    )


def _who(identity: Identity) -> str:
    pairs = [
        ("engine", f"{identity.engine} {identity.version}".strip()),
        *[(k, str(v)) for k, v in identity.settings.items()],
        *[(f"sha256 {k}", v) for k, v in identity.sha256.items()],
    ]
    rows = "".join(f"<dt>{_t(k, 120)}</dt><dd><code>{_t(v)}</code></dd>" for k, v in pairs if v)
    return _section("Identity", f"<dl>{rows}</dl>") if rows else ""


def _identity(report: Report) -> str:
    config = "".join(f"<dt>{_t(k, 80)}</dt><dd><code>{_t(v)}</code></dd>" for k, v in report.config.items())
    made = (
        f"Made {_t(report.created)}{_seconds(report.seconds)}, seed {report.seed}, schema {report.version}. All "
        "raw numbers are in report.json."
    )
    details = f"<details><summary>the model's config</summary><dl>{config}</dl></details>" if config else ""
    repro = f"<h3>Run it again</h3><pre>{_t(report.repro, 4000)}</pre>" if report.repro else ""
    return (
        f'<section class="card"><h2>The reference</h2>{_who(report.reference)}{details}{repro}</section>\n'
        f"<footer>{made}</footer>\n"
    )
