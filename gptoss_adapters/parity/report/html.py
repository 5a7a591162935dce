"""report.html from a report's JSON alone: one file, no script, nothing fetched; every foreign text is safe.

The order follows the reader's questions: is it the same, where not, by how much more than rounding, what would this run
have seen, and how do I run it again.
"""

from __future__ import annotations

from gptoss_adapters.parity.report import charts
from gptoss_adapters.parity.report.html_pieces import (
    VERDICT_CLASS,
    render_badge,
    render_figure,
    render_identity,
    render_section,
    render_state,
    render_table,
    safe,
    tell_seconds,
)
from gptoss_adapters.parity.report.html_target import (
    render_certificate,
    render_deviations,
    render_families,
    render_structural,
    render_suspects,
    render_text_layer,
    render_tool_calls,
    render_weights,
)
from gptoss_adapters.parity.report.schema import (
    FAIL,
    LOOK,
    PASS,
    Report,
    TargetResult,
)
from gptoss_adapters.parity.report.style import CSP, CSS
from gptoss_adapters.parity.report.words import (
    STATE_SYMBOL,
    VERDICT_MEANS,
    VERDICT_SYMBOL,
    clean,
    family_names,
    headline,
    times,
    verdict_words,
    worst_verdict,
)


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
        f'content="no-referrer">\n<title>{safe(title)}</title>\n<style>{CSS}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(part for part in body if part)}</main>\n</body>\n</html>\n"
    )


def _top(report: Report) -> str:
    """The verdict first, then targets x probe families."""
    verdict = worst_verdict(report)
    lines = "".join(
        f"<p>{render_badge(t.verdict)} <b>{safe(t.name, 120)}</b> {safe(t.reason)}</p>" for t in report.targets
    )
    words = headline(report)
    means = "; ".join(
        f"{safe(v)}: {safe(VERDICT_MEANS[v])}"
        for v in dict.fromkeys(t.verdict for t in report.targets)
        if v in VERDICT_MEANS
    )
    kind = VERDICT_CLASS.get(verdict, "good")
    return (
        f'<h1>Is it the same model? <code>{safe(report.checkpoint, 160)}</code></h1>\n<section class="card">'
        f'<p class="verdict"><span class="badge {kind}">{VERDICT_SYMBOL[verdict]}</span> '
        f'{safe(words)}</p>{lines}<p class="soft small">{means}</p>'
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
            render_state(f.verdict, times(f.worst) if f.worst is not None else "") if (f := by_name.get(name)) else ""
            for name in names
        ]
        rows.append([f"<b>{safe(target.name, 80)}</b>", *cells])
    return render_section(
        "Targets and probes", render_table(["target", *map(safe, names)], rows, ["any", *["cell"] * len(names)])
    )


def _target(target: TargetResult) -> str:
    parts = [
        f'<div class="head"><h2>{safe(target.name, 160)}</h2>'
        f"{render_badge(target.verdict, verdict_words(target))}</div>"
        f"<p>{safe(target.reason)}</p>",
        '<p class="soft small">Judged by: '
        f"{safe(target.null or 'no null: nothing was computed')}{tell_seconds(target.seconds)}</p>",
        render_suspects(target),
        render_deviations(target),
        render_families(target.families),
        f'<div class="figures">{"".join(map(render_figure, charts.figures(target)))}</div>',
        render_structural(target),
        render_text_layer(target),
        render_tool_calls(target.tool_calls),
        render_weights(target.weights),
        render_certificate(target),
        render_identity(target.identity),
    ]
    return f'<section class="card">{"".join(parts)}</section>\n'


def _yarn(report: Report) -> str:
    if report.angle_error is None or not report.angle_error.positions:
        return ""
    figures = "".join(map(render_figure, charts.angle(report.angle_error)))
    return (
        '<section class="card"><h2>Rounded YaRN bounds at long contexts</h2><p>Some engines round the bounds of '
        "the YaRN ramp. This is what that costs, computed to the longest position of the model.</p><div "
        f'class="figures">{figures}</div></section>\n'
    )


def _identity(report: Report) -> str:
    config = "".join(f"<dt>{safe(k, 80)}</dt><dd><code>{safe(v)}</code></dd>" for k, v in report.config.items())
    made = (
        f"Made {safe(report.created)}{tell_seconds(report.seconds)}, seed {report.seed}, schema {report.version}. All "
        "raw numbers are in report.json."
    )
    details = f"<details><summary>the model's config</summary><dl>{config}</dl></details>" if config else ""
    repro = f"<h3>Run it again</h3><pre>{safe(report.repro, 4000)}</pre>" if report.repro else ""
    return (
        f'<section class="card"><h2>The reference</h2>{render_identity(report.reference)}{details}{repro}</section>\n'
        f"<footer>{made}</footer>\n"
    )
