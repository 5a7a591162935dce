"""Small charts as SVG text: the same numbers give the same bytes; no script, no font, colours from the page's style
sheet.

Every chart is drawn in a box of WIDTH x HEIGHT units, about as many pixels on any screen, so that its text stays
readable.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 380, 210
_LEFT = 46
_RIGHT = 10
_TOP = 12
_BOTTOM = 34
# Cividis by eighths: even in lightness, and the same order for every kind of colour vision.
RAMP = [
    (0, 32, 77),
    (22, 58, 110),
    (64, 82, 107),
    (95, 105, 108),
    (124, 123, 120),
    (152, 148, 108),
    (185, 172, 94),
    (219, 198, 76),
    (253, 231, 55),
]
_SUPER = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


@dataclass
class Axis:
    """A range, linear or logarithmic. label: what it measures, with its unit."""

    low: float
    high: float
    label: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """0..1 along the axis; what lies outside is drawn at the edge."""
        low, high, here = (math.log10(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        return min(max((here - low) / (high - low or 1.0), 0.0), 1.0)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first) / most))
            return [(10.0**p, _power(p)) for p in range(first, last + 1, every)]
        step = _nice((self.high - self.low) / most)
        begin, end = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(n * step, f"{n * step:.6g}") for n in range(begin, end + 1)]


def _power(p: int) -> str:
    return {0: "1", 1: "10", 2: "100"}.get(p, f"10{str(p).translate(_SUPER)}")


def _nice(step: float) -> float:
    if step <= 0 or not math.isfinite(step):
        return 1.0
    base = 10.0 ** math.floor(math.log10(step))
    return next(base * m for m in (1, 2, 5, 10) if base * m >= step * (1 - 1e-9))


def log_axis(values: Sequence[float | None], label: str, least: float = 1e-18) -> Axis:
    """Whole powers of ten around the positive values."""
    found = [v for v in values if v is not None and v > 0]
    low, high = (min(found), max(found)) if found else (0.1, 10.0)
    low_power = math.floor(math.log10(max(low, least)))
    return Axis(10.0**low_power, 10.0 ** max(math.ceil(math.log10(max(high, least))), low_power + 1), label, True)


@dataclass
class Plot:
    """Marks over two axes; `str(plot)` is the SVG. title: said to screen readers."""

    title: str
    x: Axis
    y: Axis
    marks: list[str] = field(default_factory=list)
    top: list[str] = field(default_factory=list)
    key: list[tuple[str, str]] = field(default_factory=list)  # (class, words)

    def px(self, value: float) -> float:
        return _LEFT + self.x.at(value) * (WIDTH - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self.y.at(value) * (HEIGHT - _TOP - _BOTTOM)

    def line(
        self, xs: Sequence[float], ys: Sequence[float | None], kind: str, words: str = "", step: bool = False
    ) -> Plot:
        """A curve; it breaks where there is no value."""
        path, pen = [], "M"
        before = 0.0
        for x, y in zip(xs, ys, strict=True):
            if y is None or (self.y.log and y <= 0):
                pen = "M"
                continue
            if step and pen == "L":
                path.append(f"L{self.px(x):.1f} {before:.1f}")
            before = self.py(y)
            path.append(f"{pen}{self.px(x):.1f} {before:.1f}")
            pen = "L"
        if path:
            self.marks.append(f'<path class="line {kind}" d="{"".join(path)}"/>')
        return self._keyed(f"line {kind}", words)

    def bars(
        self, edges: Sequence[float], counts: Sequence[float], kind: str, words: str = "", outline: bool = False
    ) -> Plot:
        """A histogram: filled bars, or their outline."""
        base = self.py(self.y.low)
        if outline:
            path = f"M{self.px(edges[0]):.1f} {base:.1f}"
            for left, right, n in zip(edges, edges[1:], counts, strict=False):
                path += f"V{self.py(n):.1f}H{self.px(right):.1f}" if n else f"V{base:.1f}H{self.px(right):.1f}"
                del left
            self.marks.append(f'<path class="outline {kind}" d="{path}V{base:.1f}"/>')
            return self._keyed(f"outline {kind}", words)
        for left, right, n in zip(edges, edges[1:], counts, strict=False):
            if n > 0:
                a, b = self.px(left) + 0.4, self.px(right) - 0.4
                self.marks.append(
                    f'<rect class="bar {kind}" x="{a:.1f}" y="{self.py(n):.1f}" width="{max(b - a, 0.8):.1f}" '
                    f'height="{base - self.py(n):.1f}"/>'
                )
        return self._keyed(f"bar {kind}", words)

    def points(
        self,
        xs: Sequence[float],
        ys: Sequence[float | None],
        kind: str,
        words: str = "",
        cross: bool = False,
        radius: float = 2.6,
    ) -> Plot:
        """Dots, or crosses."""
        for x, y in zip(xs, ys, strict=True):
            if y is None or (self.y.log and y <= 0):
                continue
            a, b = self.px(x), self.py(y)
            shape = (
                f'<path class="cross {kind}" d="M{a - 3:.1f} {b - 3:.1f}l6 6m0-6l-6 6"/>'
                if cross
                else f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
            )
            self.marks.append(shape)
        return self._keyed(f"{'cross' if cross else 'dot'} {kind}", words)

    def mark_x(self, value: float, words: str) -> Plot:
        """A vertical line with a word at its top."""
        x = self.px(value)
        anchor = "end" if x > WIDTH - 70 else "start"
        self.top.append(
            f'<path class="mark" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/><text class="note" '
            f'x="{x + (-3 if anchor == "end" else 3):.1f}" y="{_TOP + 8}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )
        return self

    def mark_y(self, value: float, words: str) -> Plot:
        """A horizontal line with a word at its right."""
        y = self.py(value)
        self.top.append(
            f'<path class="mark" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/><text class="note" x="{WIDTH - _RIGHT}" '
            f'y="{y - 3:.1f}" text-anchor="end">{escape(words)}</text>'
        )
        return self

    def image(self, cells: Sequence[Sequence[float | None]]) -> Plot:
        """Rows of values 0..1 (None: grey), the first row at the bottom, over the whole plot."""
        x, y = _LEFT, _TOP
        w, h = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        self.marks.append(
            f'<image x="{x}" y="{y}" width="{w}" height="{h}" preserveAspectRatio="none" class="pixels" '
            f'href="{png([*cells][::-1])}"/>'
        )
        return self

    def _keyed(self, kind: str, words: str) -> Plot:
        if words:
            self.key.append((kind, words))
        return self

    def __str__(self) -> str:
        title = escape(self.title)
        svg = (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{title}">{self._axes()}{"".join(self.marks)}{"".join(self.top)}</svg>'
        )
        return svg + self._key()

    def _axes(self) -> str:
        bottom, parts = HEIGHT - _BOTTOM, []
        for value, words in self.y.ticks():
            y = self.py(value)
            parts.append(
                f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/><text x="{_LEFT - 5}" '
                f'y="{y + 3.5:.1f}" text-anchor="end">{escape(words)}</text>'
            )
        for value, words in self.x.ticks(6):
            x = self.px(value)
            parts.append(
                f'<path class="tick" d="M{x:.1f} {bottom}v4"/><text x="{x:.1f}" y="{bottom + 15}" '
                f'text-anchor="middle">{escape(words)}</text>'
            )
        parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="label" x="{(WIDTH + _LEFT - _RIGHT) / 2:.0f}" y="{HEIGHT - 4}" '
            f'text-anchor="middle">{escape(self.x.label)}</text>'
        )
        parts.append(
            f'<text class="label" transform="translate(11 {(bottom + _TOP) / 2:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.label)}</text>'
        )
        return "".join(parts)

    def _key(self) -> str:
        shapes = {
            "line": '<path class="{}" d="M0 5h18"/>',
            "bar": '<rect class="{}" x="2" width="14" height="10"/>',
            "outline": '<path class="{}" d="M1 10V2h16v8"/>',
            "dot": '<circle class="{}" cx="9" cy="5" r="3"/>',
            "cross": '<path class="{}" d="M6 2l6 6m0-6l-6 6"/>',
        }
        items = [
            '<li><svg viewBox="0 0 18 10" '
            f'aria-hidden="true">{shapes[kind.split()[0]].format(kind)}</svg>{escape(words)}</li>'
            for kind, words in self.key
        ]
        return f'<ul class="key">{"".join(items)}</ul>' if items else ""


def ramp(value: float) -> tuple[int, int, int]:
    """The colour of 0..1."""
    at = min(max(value, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    a, b = RAMP[i], RAMP[i + 1]
    return (
        round(a[0] + (b[0] - a[0]) * (at - i)),
        round(a[1] + (b[1] - a[1]) * (at - i)),
        round(a[2] + (b[2] - a[2]) * (at - i)),
    )


def png(cells: Sequence[Sequence[float | None]]) -> str:
    """Rows of values 0..1 as an image in a data URI, one pixel a cell."""
    width = max((len(row) for row in cells), default=0)
    rows = b"".join(
        b"\0" + b"".join(bytes((128, 128, 128) if v is None else ramp(v)) for v in [*row, *[None] * (width - len(row))])
        for row in cells
    )
    header = struct.pack(">IIBBBBB", width, len(cells), 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
