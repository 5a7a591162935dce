"""The charts of a report, each with its numbers as a table for those who cannot see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gptoss_adapters.parity.report.measurements import Histogram, Layers, Strip
from gptoss_adapters.parity.report.schema import LOOK_EXCESS, PASS_EXCESS, AngleError, Greedy, TargetResult
from gptoss_adapters.parity.report.svg import Axis, Plot, log_axis
from gptoss_adapters.parity.report.words import DASH, count, number, times

MOST_ROWS = 24  # of a table beside a chart
_HEAT_DECADES = 3.0  # an excess of 1 is the ramp's dark end, one of 1000 its light end


@dataclass(frozen=True)
class Figure:
    """A chart: a title, one line on how to read it, the SVG, and (header, rows)."""

    title: str
    reading: str
    svg: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def figures(target: TargetResult) -> list[Figure]:
    """Those of one target, in reading order; what was not measured has none."""
    found: list[Figure] = []
    if target.kl_histogram and sum(target.kl_histogram.counts):
        found.append(histogram(target.kl_histogram))
    found += [strip(one) for one in target.strips if one.kl]
    if target.layers and target.layers.nmse:
        found += [heat(target.layers), onset(target.layers)]
    if target.layers and target.layers.flips:
        found.append(flips(target.layers))
    if target.greedy and target.greedy.survival:
        found.append(survival(target.greedy))
    return found


def histogram(data: Histogram) -> Figure:
    null = [*data.null_counts, *[0] * (len(data.counts) - len(data.null_counts))]
    filled = [i for i, both in enumerate(zip(data.counts, null, strict=True)) if any(both)]
    part = slice(max(filled[0] - 1, 0), min(filled[-1] + 2, len(data.counts)))  # one empty bin at each side
    counts = data.counts[part]
    null = null[part]
    edges = [10.0**e for e in data.edges[part.start : part.stop + 1]]
    plot = Plot(
        "Histogram of KL divergence over positions, with the null's",
        Axis(edges[0], edges[-1], "KL per position, nats", True),
        Axis(0, max([*counts, *null]), "positions"),
    )
    plot.bars(edges, counts, "seen", "target").bars(edges, null, "null", "null: honest rounding", outline=True)
    rows = [
        (f"{number(a)} to {number(b)}", count(n), count(m))
        for a, b, n, m in zip(edges, edges[1:], counts, null, strict=False)
        if n or m
    ]
    return Figure(
        "KL divergence",
        "Where the bars lie right of the outline, the target is further off than rounding makes it.",
        str(plot),
        ("KL, nats", "target", "null"),
        rows,
    )


def strip(data: Strip) -> Figure:
    """KL along one prompt."""
    positions = list(range(len(data.kl)))
    y = log_axis([*data.kl, *data.null_kl], "KL, nats")
    plot = Plot(
        f"KL divergence along prompt {data.prompt} of {data.family}", Axis(0, max(len(positions) - 1, 1), "position"), y
    )
    if data.null_kl:
        null_at = positions[: len(data.null_kl)]
        plot.points(null_at, data.null_kl, "rawnull", radius=1.2).line(
            null_at, running_median(data.null_kl), "null", "null"
        )
    plot.points(positions, data.kl, "raw", radius=1.2).line(positions, running_median(data.kl), "seen", "target")
    for at, words in sorted(data.ticks.items(), key=lambda tick: int(tick[0])):
        if int(at) <= positions[-1]:
            plot.mark_x(float(at), words)
    null = [*data.null_kl, *[None] * len(data.kl)]
    rows = [(count(i), number(data.kl[i]), number(null[i])) for i in _spread(len(data.kl))]
    return Figure(
        f"Along a prompt: {data.family}",
        "Dots are positions, lines running medians. A step up at a mark is a window or a context edge done wrong.",
        str(plot),
        ("position", "KL, nats", "null"),
        rows,
    )


def heat(data: Layers) -> Figure:
    """Layers x positions, as excess over the null."""
    cells: list[list[float | None]] = []
    for row, null in zip(data.nmse, data.null_nmse, strict=False):
        cells.append([_heat(a, b) for a, b in zip(row, null, strict=False)])
    layers, width = len(cells), max((len(row) for row in cells), default=1)
    plot = Plot(
        "Error of each layer at each position, divided by the null's",
        Axis(0, width, "position"),
        Axis(0, layers, "layer"),
    ).image(cells)
    rows = [(str(i), times(value)) for i, value in enumerate(data.excess)]
    return Figure(
        "Layers and positions",
        "Dark: within rounding. Bright: a thousand times more. The first bright row is where it begins.",
        str(plot),
        ("layer", "excess, median"),
        rows,
    )


def _heat(value: float | None, null: float | None) -> float | None:
    if value is None or null is None or null <= 0:
        return None
    return math.log10(max(value / null, 1.0)) / _HEAT_DECADES


def onset(data: Layers) -> Figure:
    edges = [i - 0.5 for i in range(len(data.excess) + 1)]
    y = log_axis([*data.excess, 1.0, LOOK_EXCESS], "error / null")
    plot = Plot("Excess of each layer", Axis(edges[0], edges[-1], "layer"), y).bars(edges, data.excess, "seen")
    plot.mark_y(PASS_EXCESS, f"{PASS_EXCESS:g}\u00d7").mark_y(LOOK_EXCESS, f"{LOOK_EXCESS:g}\u00d7")
    flips_ = [*data.flip_rate, *[None] * len(data.excess)]
    rows = [
        (str(i), times(value), DASH if flips_[i] is None else f"{100 * (flips_[i] or 0):.2f} %")
        for i, value in enumerate(data.excess)
    ]
    return Figure(
        "Layer by layer",
        "The first bar above the upper line is the layer to look at.",
        str(plot),
        ("layer", "excess", "router flips"),
        rows,
    )


def flips(data: Layers) -> Figure:
    """Other experts: by how much the reference preferred its own, and what the noise allows."""
    cheap, dear = [f for f in data.flips if f.cheap], [f for f in data.flips if not f.cheap]
    x = log_axis([f.allowed for f in data.flips], "what the noise allows")
    y = log_axis([f.gap for f in data.flips], "router gap")
    plot = Plot("Router flips: the gap of the reference against what noise allows", x, y)
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low < high:
        plot.line([low, high], [low, high], "null", "equal")
    plot.points([f.allowed for f in cheap], [f.gap for f in cheap], "seen", "within the noise")
    plot.points([f.allowed for f in dear], [f.gap for f in dear], "bad", "too wide to be noise", cross=True)
    rows = [
        (str(f.layer), str(f.prompt), str(f.position), number(f.gap), number(f.allowed)) for f in data.flips[:MOST_ROWS]
    ]
    return Figure(
        "Router flips",
        "Above the line the target chose other experts although the choice was clear.",
        str(plot),
        ("layer", "prompt", "position", "gap", "allowed"),
        rows,
    )


def survival(data: Greedy) -> Figure:
    steps = list(range(1, len(data.survival) + 1))
    plot = Plot(
        "Share of greedy answers that are still equal",
        Axis(0, len(steps), "tokens generated"),
        Axis(0, 1, "share equal"),
    )
    plot.line([0, *steps], [1.0, *data.survival], "seen", "prompts still equal", step=True)
    for prompt in data.prompts:
        if prompt.first_divergence is not None:
            at = prompt.first_divergence
            plot.points(
                [at + 1],
                [data.survival[min(at, len(data.survival) - 1)]],
                "seen" if prompt.legitimate else "bad",
                cross=not prompt.legitimate,
            )
    rows = [
        (
            str(p.prompt),
            DASH if p.first_divergence is None else str(p.first_divergence),
            number(p.margin),
            number(p.allowed),
            "yes" if p.legitimate else "no",
        )
        for p in data.prompts
    ]
    return Figure(
        "Greedy answers",
        "An answer may part from the reference's where that was undecided; a cross is where it was not.",
        str(plot),
        ("prompt", "parts at", "margin", "allowed", "legitimate"),
        rows[:MOST_ROWS],
    )


def angle(data: AngleError) -> list[Figure]:
    """What rounding the YaRN bounds does: computed for the angles, measured on the reference for the logits."""
    plot = Plot(
        "Largest rotation error of rounded YaRN bounds by position",
        Axis(max(data.positions[0], 1), data.positions[-1], "position", True),
        log_axis(data.radians, "radians"),
    )
    plot.line([max(p, 1) for p in data.positions], data.radians, "seen", "computed")
    if data.measured_positions:
        plot.mark_x(max(data.measured_positions), "longest that ran")
    plot.mark_y(math.pi, "half a turn") if max(data.radians, default=0) >= math.pi else None
    rows = [(count(data.positions[i]), number(data.radians[i])) for i in _spread(len(data.positions))]
    bounds, rounded = (" and ".join(number(v, 5) for v in pair) for pair in (data.bounds, data.rounded))
    computed = Figure(
        "Angle error of rounded YaRN bounds",
        f"The ramp runs from {bounds}; an engine that rounds has {rounded}.",
        str(plot),
        ("position", "radians"),
        rows,
    )
    pairs = [(p, v) for p, v in zip(data.measured_positions, data.measured_nmse, strict=False) if v is not None]
    return [computed, _effect(pairs)] if len(pairs) > 1 else [computed]


def _effect(pairs: Sequence[tuple[int, float]]) -> Figure:
    """pairs: position and NMSE."""
    xs, ys = [max(p, 1) for p, _ in pairs], [v for _, v in pairs]
    plot = Plot(
        "Effect of rounded YaRN bounds on the logits",
        Axis(min(xs), max(xs), "position", True),
        log_axis(ys, "NMSE of the logits"),
    )
    plot.line(xs, ys, "seen", "measured on the reference")
    return Figure(
        "Their effect on the logits",
        "Up to the longest prompt of this run.",
        str(plot),
        ("position", "NMSE"),
        [(count(pairs[i][0]), number(pairs[i][1])) for i in _spread(len(pairs))],
    )


def running_median(values: Sequence[float | None], reach: int = 3) -> list[float | None]:
    """Over 2 reach + 1 neighbours: it shows a step where it is, and no single spike."""
    out: list[float | None] = []
    for i in range(len(values)):
        near = [v for v in values[max(i - reach, 0) : i + reach + 1] if v is not None]
        out.append(median(near) if near else None)
    return out


def _spread(n: int) -> Sequence[int]:
    """At most MOST_ROWS indices from first to last."""
    return range(n) if n <= MOST_ROWS else sorted({round(i * (n - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)})
