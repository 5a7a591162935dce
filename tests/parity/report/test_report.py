"""The renderings: complete, self-contained, escaped, the same bytes each time, and right in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.browser import Browser
from helpers.sample_measurements import HOSTILE
from helpers.sample_report import report

from gptoss_adapters.parity.report import html, markdown, schema, svg
from gptoss_adapters.parity.report.charts import running_median
from gptoss_adapters.parity.report.files import write_report
from gptoss_adapters.parity.report.words import number

VOID = {"meta", "br", "img", "hr", "input", "link"}
SCRIPTING = {
    "script",
    "iframe",
    "object",
    "embed",
    "form",
    "link",
    "base",
    "a",
    "img",
    "video",
    "audio",
    "input",
    "button",
    "foreignobject",
    "use",
}


class Reader(HTMLParser):
    """Every element, attribute and text of a page; complains about what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1] == "style"):
            self.texts.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return html.render(report())


def test_the_page_is_well_formed_and_self_contained(page: str) -> None:
    read = Reader(page)
    assert not read.open
    assert not read.tags & SCRIPTING
    for tag, name, value in read.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("href", "src", "xlink:href", "style", "content") or "url(" in value:
            assert (
                value.startswith("data:image/png;base64,") or name in ("content",) or re.fullmatch(r"width:\d+%", value)
            ), (tag, name, value[:80])
    assert "default-src 'none'" in page and "@import" not in page and "url(" not in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert len(page) < 400_000


def test_names_and_tokens_are_escaped(page: str) -> None:
    read = Reader(page)
    text = "".join(read.texts)
    assert text.count('"><script>alert(1)</script>') >= 10  # shown as what it is
    assert "<script" not in page.lower() and "<img" not in page.lower()
    assert "\x1b" not in page and "\u202e" not in page
    assert "layers.0.<b>q_proj</b>.weight" in text
    plain = markdown.summary(report())
    assert "\x1b" not in plain and "\u202e" not in plain


def test_the_page_says_what_the_report_holds(page: str) -> None:
    sample = report()
    text = " ".join("".join(Reader(page).texts).split())
    assert (
        text.index("1 DIFFERENT, 1 NOT COMPARABLE, 1 SAME EXCEPT, 1 SAME WITHIN NUMERICS, 1 SAME") < 400
    )  # the verdict line comes first
    for target in sample.targets:
        assert target.verdict in text and target.reason in text
        for family in target.families:
            assert family.name in text and family.what in text and number(family.metrics.kl_mean) in text
        for check in target.structural:
            assert check.observed in text
        if target.certificate:
            assert f"{target.certificate.caught} of {target.certificate.total} seeded faults" in text
            assert all(fault.fault in text for fault in target.certificate.faults)
    assert "confirmed: excess 840\u00d7 without it in the reference, 1.3\u00d7 with it" in text
    assert "8.093 and 17.398" in text and "131 072" in text  # split() took the thin space
    assert "gptoss-parity run pocket --target" in text and "\u2265 " in text
    assert page.count("<figure>") == 2 * 6 + 2 and page.count("the numbers") == page.count("<figure>")


def test_every_chart_has_words_and_the_same_bytes(page: str) -> None:
    assert page == html.render(report())
    labels = [value for tag, name, value in Reader(page).attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == page.count("<figure>") and all(labels)


def test_an_old_or_empty_report_still_renders() -> None:
    bare = schema.Report("x", targets=[schema.TargetResult("t", "torch", schema.NOT_COMPARABLE, "it died")])
    assert "it died" in html.render(bare) and "it died" in markdown.render(bare) and "it died" in markdown.summary(bare)
    assert html.render(schema.Report("x")) and markdown.render(schema.Report("x"))
    empty = report()
    for target in empty.targets:
        target.families = [schema.Family("f", "", 0, 0, schema.Metrics())]
        target.strips = [schema.Strip("f", 0, [None, None], [None, None], [], [], {"16": "W"})]
        target.kl_histogram, target.layers = schema.Histogram(), schema.Layers()
    assert not Reader(html.render(empty)).open


def test_markdown_is_inert() -> None:
    text = markdown.render(report())
    assert text.startswith("## \u2260 Parity of `pocket`: 1 DIFFERENT")
    fenced = re.sub(r"^(```+)\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    outside = re.sub(r"(`+).*?\1", "", fenced)  # code spans show what they hold
    assert "<script" not in outside and "<img" not in outside and "@everyone" not in outside
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) > 3
    assert (
        "SAME EXCEPT yarn\\_truncate (confirmed)" in text and "win\\_plus1 confirmed" in text and len(text) < 60_000
    )  # a comment holds 65 536


def test_show_renders_again_and_exits_as_the_run_did(tmp_path: Path) -> None:
    sample = report()
    files = write_report(sample, tmp_path / "out")
    assert [file.name for file in files] == ["report.json", "report.md", "report.html"]
    before = [file.read_bytes() for file in files]
    for file in files[1:]:
        file.unlink()
    command = [sys.executable, "-c", "from gptoss_adapters.parity.cli import main; main()", "show"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert [file.read_bytes() for file in files] == before
    assert "DIFFERENT: win_plus1 confirmed" in done.stdout and "suspect win_plus1 (1.00, confirmed)" in done.stdout
    codes = {schema.SAME: 0, schema.WITHIN: 0, schema.EXCEPT: 0, schema.NOT_COMPARABLE: 3}
    for verdict, code in codes.items():
        one = schema.Report("x", targets=[schema.TargetResult("t", "torch", verdict)])
        one.save(tmp_path / "one.json")
        done = subprocess.run(
            [*command, str(tmp_path / "one.json"), "--format", "md"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code and done.stdout == markdown.render(one)
    for bad, line in (
        ("{", "not JSON"),
        ("[]", "not a parity report"),
        ('{"version": 99, "targets": []}', "later version"),
    ):
        (tmp_path / "bad.json").write_text(bad)
        done = subprocess.run([*command, str(tmp_path / "bad.json")], capture_output=True, text=True, check=False)
        assert done.returncode == 3 and line in done.stderr and "Traceback" not in done.stderr


def test_json_round_trip() -> None:
    sample = report()
    again = schema.Report.from_json(json.loads(json.dumps(sample.to_json())))
    assert again == sample and html.render(again) == html.render(sample)


def test_axes_and_pixels() -> None:
    axis = svg.log_axis([None, 3e-7, 0.02, 0.0], "x")
    assert (
        (axis.low, axis.high) == (pytest.approx(1e-7), pytest.approx(0.1))
        and axis.at(1e-7) == 0
        and axis.at(0.1) == 1
        and axis.at(9) == 1
    )
    assert [words for _, words in svg.Axis(0, 300).ticks()] == ["0", "100", "200", "300"]
    assert svg.Axis(1, 131072, log=True).ticks()[-1][1] == "10\u2075"
    data = svg.png([[0.0, 1.0], [None, 0.5]])
    import base64

    raw = base64.b64decode(data.removeprefix("data:image/png;base64,"))
    pixels = zlib.decompress(raw[raw.index(b"IDAT") + 4 : raw.index(b"IEND") - 8])
    assert pixels[1:7] == bytes((*svg.RAMP[0], *svg.RAMP[-1])) and pixels[8:11] == bytes((128, 128, 128))
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in svg.RAMP]
    assert light == sorted(light)  # readable without colours
    assert (
        running_median([1, 1, 1, 1, 9, 9, 9, 9]) == [1, 1, 1, 1, 9, 9, 9, 9] and running_median([1, 9, 1, None])[1] == 1
    )


# In a browser
# -----------------------------------------------------------------------------------------------------------


def _contrast(a: str, b: str) -> float:
    """WCAG contrast of two rgb() colours."""

    def light(colour: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        return sum(
            w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
            for w, v in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.backend("chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    """No overflow, nothing fetched, readable colours, in both schemes and at both widths; and it prints."""
    *_, page = write_report(report(), tmp_path)
    with Browser() as browser:
        for width in (1280, 400):
            for dark in (False, True):
                browser.open(page, width, dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, (width, dark)
                outside = browser.evaluate(
                    "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
                    f"e.getBoundingClientRect().right > {width} + .5).length"
                )
                assert outside == 0, (width, dark)
                assert browser.evaluate("document.querySelectorAll('figure > svg').length") == 14
                smallest = browser.evaluate(
                    "Math.min(...[...document.querySelectorAll('figure svg text')].map(e => "
                    "e.getBoundingClientRect().height))"
                )
                assert smallest > 8, (width, smallest)
                for kind in ("good", "look", "fail", "none"):
                    pair = browser.evaluate(
                        f"(s => [s.color, s.backgroundColor])(getComputedStyle(document.querySelector('.{kind}')))"
                    )
                    assert _contrast(*pair) >= 4.5, (kind, dark, pair)
                ink, back = browser.evaluate(
                    "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
                )
                assert _contrast(ink, back) > 10 and (_contrast(back, "rgb(0,0,0)") < 2) == dark
                assert not [url for url in browser.requested if not url.startswith(("file:", "data:"))]
                assert not browser.console
                browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
                assert browser.evaluate("document.documentElement.scrollWidth") <= width, ("opened", width, dark)
                browser.screenshot(tmp_path / f"{width}-{'dark' if dark else 'light'}.png", height=2000)
        assert all((tmp_path / f"{w}-{s}.png").stat().st_size > 20_000 for w in (400, 1280) for s in ("light", "dark"))
        assert browser.pdf().startswith(b"%PDF") and HOSTILE not in page.read_text()
