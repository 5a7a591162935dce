"""What will be written, known in full before the first byte: files, tensors, offsets, sources and the work that fills
them.

Plan -> PlannedFile(s): path, header bytes, tensors with their offsets
     -> Work: a Fill (how bytes come about) and the places where its rows go
     -> Job: a run of rows of one Work; jobs share nothing, so any thread may do any job in any order
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from gptoss_adapters.checkpoint.files import Stamp, check_stamp

JOB_BYTES = 16 << 20  # what an interrupted run may have to do again, per thread
Target = tuple[int, int]  # open file descriptor, offset of a tensor's first byte


class Fill(Protocol):
    """The bytes of one or more tensors of equally many rows, `rows` of `widths[k]` bytes each, that any source row run
    gives.

    `write` puts rows begin..end of every tensor where they belong; `differs` reads them back and compares them with the
    source: None, or (which tensor, byte offset in it) of the first difference. `step` rows must stay together in one
    job.
    """

    rows: int
    widths: tuple[int, ...]
    step: int

    def write(self, begin: int, end: int, targets: Sequence[Target]) -> None: ...

    def differs(self, begin: int, end: int, targets: Sequence[Target]) -> tuple[int, int] | None: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the output: `dtype` as the format spells it, `shape` row-major, `source` in words for
    `--dry-run`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source: str


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One output file: `header` is its first bytes, `offsets` say where each tensor begins, gaps are zero."""

    path: Path
    header: bytes
    tensors: tuple[Tensor, ...]
    offsets: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """Tensor number `tensor` of file number `file`."""

    file: int
    tensor: int


@dataclass(frozen=True, slots=True)
class Work:
    """A fill and the tensors that it fills, in its order."""

    fill: Fill
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Rows begin..end of work number `work`."""

    work: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Seal:
    """64 characters at `offset` of file 0's header that receive the sha256 of a source file or of an output's
    tensor data.
    """

    offset: int
    of: str  # "source" or "data"
    index: int


@dataclass(frozen=True)
class Plan:
    """The whole output. `options` and the sources' stamps are what a resumed run must find unchanged.

    The stamps are those of the files as they were opened: what the headers said holds for no other bytes.
    """

    files: tuple[PlannedFile, ...]
    works: tuple[Work, ...]
    sources: Mapping[Path, Stamp]
    options: Mapping[str, Any] = field(default_factory=dict)
    seals: tuple[Seal, ...] = ()

    def __post_init__(self) -> None:
        filled = [p for w in self.works for p in w.places]
        assert len(set(filled)) == len(filled) == sum(len(f.tensors) for f in self.files), "every tensor is filled once"

    @property
    def nbytes(self) -> int:
        return sum(f.size for f in self.files)

    @cached_property
    def key(self) -> str:
        """Names this output and its inputs: equal keys give equal bytes."""
        facts = [
            [[f.path.name, hashlib.sha256(f.header).hexdigest(), f.size] for f in self.files],
            [[str(p.resolve()), *s] for p, s in self.sources.items()],
            JOB_BYTES,
            dict(self.options),
            [[s.offset, s.of, s.index] for s in self.seals],
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(job for number, work in enumerate(self.works) for job in _cut(number, work))

    def job_bytes(self, job: Job) -> int:
        work = self.works[job.work]
        return (job.end - job.begin) * sum(work.fill.widths)

    def check_sources(self) -> None:
        """Raises BadInput when a source was replaced, resized or rewritten since it was opened."""
        for path, before in self.sources.items():
            check_stamp(path, before)


def _cut(number: int, work: Work) -> Iterator[Job]:
    fill = work.fill
    step = max(JOB_BYTES // sum(fill.widths) // fill.step, 1) * fill.step
    for begin in range(0, fill.rows, step):
        yield Job(number, begin, min(begin + step, fill.rows))
