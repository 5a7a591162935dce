"""The small pieces of report.html. Every foreign text goes through `safe`."""

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
    Identity,
)
from gptoss_adapters.parity.report.words import (
    STATE_SYMBOL,
    VERDICT_SYMBOL,
    clean,
)

STATE_CLASS = {PASS: "good", LOOK: "look", FAIL: "fail", SKIPPED: "none"}
VERDICT_CLASS = {DIFFERENT: "fail", NOT_COMPARABLE: "none", EXCEPT: "look"}


def safe(text: object, limit: int = 400) -> str:
    """Foreign or own text, safe in content and in attributes."""
    return escape(clean(str(text), limit), quote=True)


def render_badge(verdict: str, words: str | None = None) -> str:
    kind = VERDICT_CLASS.get(verdict, "good")
    return (
        f'<span class="badge {kind}"><span aria-hidden="true">{VERDICT_SYMBOL.get(verdict, "?")}</span> '
        f"{safe(words or verdict)}</span>"
    )


def render_state(state: str, words: str | None = None) -> str:
    return (
        f'<span class="chip {STATE_CLASS.get(state, "none")}">{STATE_SYMBOL.get(state, "?")} '
        f"{safe(state if words is None else words)}</span>"
    )


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
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


def render_figure(figure: charts.Figure) -> str:
    table = render_table(
        [safe(h) for h in figure.header],
        [[safe(cell) for cell in row] for row in figure.rows],
        ["n"] * len(figure.header),
    )
    return (
        f"<figure><figcaption>{safe(figure.title)}</figcaption><p>{safe(figure.reading)}</p>{figure.svg}"
        f"<details><summary>the numbers</summary>{table}</details></figure>\n"
    )


def render_section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<h3>{safe(title)}</h3>\n{body}" if body else ""


def tell_seconds(seconds: float | None) -> str:
    return f"; {seconds:.1f} s" if seconds is not None else ""


def render_identity(identity: Identity) -> str:
    pairs = [
        ("engine", f"{identity.engine} {identity.version}".strip()),
        *[(k, str(v)) for k, v in identity.settings.items()],
        *[(f"sha256 {k}", v) for k, v in identity.sha256.items()],
    ]
    rows = "".join(f"<dt>{safe(k, 120)}</dt><dd><code>{safe(v)}</code></dd>" for k, v in pairs if v)
    return render_section("Identity", f"<dl>{rows}</dl>") if rows else ""
