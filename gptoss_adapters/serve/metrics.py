"""Counters, gauges and histograms in Prometheus' text format, for one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)


class Metrics:
    """`count` adds to a counter, `observe` to a histogram of seconds, `gauge` names a function that tells a current
    value.
    """

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._counters: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self._seconds: dict[str, list[float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self._counters[name, tuple(labels.items())] += amount

    def observe(self, name: str, seconds: float) -> None:
        row = self._seconds.setdefault(name, [0.0] * (len(SECONDS) + 2))
        row[sum(seconds > limit for limit in SECONDS)] += 1
        row[-1] += seconds

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        self._gauges[name] = value

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        last = ""
        for (name, labels), value in sorted(self._counters.items()):
            if name != last:
                yield f"# TYPE gptoss_{name} counter"
            last = name
            shown = ",".join(f'{key}="{text}"' for key, text in labels)
            yield f"gptoss_{name}{{{shown}}} {value:g}" if shown else f"gptoss_{name} {value:g}"
        for name, value_of in sorted(self._gauges.items()):
            yield f"# TYPE gptoss_{name} gauge"
            yield f"gptoss_{name} {value_of():g}"
        for name, row in sorted(self._seconds.items()):
            yield from _histogram(f"gptoss_{name}", row)


def _histogram(name: str, row: Sequence[float]) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    total = 0.0
    for limit, count in zip((*SECONDS, "+Inf"), row, strict=False):
        total += count
        yield f'{name}_bucket{{le="{limit}"}} {total:g}'
    yield f"{name}_sum {row[-1]:.6g}"
    yield f"{name}_count {total:g}"
