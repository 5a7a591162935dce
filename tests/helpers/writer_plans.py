"""Small plans for the writer's tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptoss_adapters.checkpoint.files import U8, stamp_of
from gptoss_adapters.checkpoint.writing.fills import ChunkFill, Produced
from gptoss_adapters.checkpoint.writing.plan import Place, Plan, PlannedFile, Tensor, Work

HEADER = b"header".ljust(64, b"\0")
ROWS, ROW_BYTES = 1000, 640


def content(begin: int, end: int) -> U8:
    return np.arange(begin * ROW_BYTES, end * ROW_BYTES, dtype=np.uint32).astype(np.uint8)


def make_plan(folder: Path, *fills: ChunkFill, sources: Sequence[Path] = (), name: str = "out.bin") -> Plan:
    """One file: the header, then a tensor per fill, 64 bytes apart."""
    fills = fills or (Produced(ROWS, ROW_BYTES, content),)
    tensors, offsets, at = [], [], len(HEADER)
    for n, fill in enumerate(fills):
        tensors.append(Tensor(f"t{n}", "U8", (fill.rows, fill.row_bytes), fill.rows * fill.row_bytes, "made"))
        offsets.append(at)
        at += fill.rows * fill.row_bytes + 64
    file = PlannedFile(folder / name, HEADER, tuple(tensors), tuple(offsets), at)
    return Plan(
        (file,), tuple(Work(f, (Place(0, n),)) for n, f in enumerate(fills)), {p: stamp_of(p.stat()) for p in sources}
    )


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if "part" in p.name)
