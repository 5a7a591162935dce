"""The structs of kernels/structs.py lie in memory as the compiled library has them."""

import ctypes

import pytest

from gptoss_adapters.kernels import structs
from gptoss_adapters.kernels.library import loaded

Layouts = dict[str, dict[str, tuple[int, int]]]


@pytest.fixture(scope="module")
def compiled() -> Layouts:
    """structure -> field -> (offset, bytes)"""
    rows = ctypes.cast(loaded().layouts(), ctypes.POINTER(structs.FieldLayout))
    found: Layouts = {}
    n = 0
    while rows[n].structure:
        row = rows[n]
        found.setdefault(row.structure.decode(), {})[row.field.decode()] = (row.offset, row.bytes)
        n += 1
    return found


def test_every_struct_is_compared(compiled: Layouts) -> None:
    ours = {name for name, value in vars(structs).items() if isinstance(value, type(ctypes.Structure))}
    assert set(compiled) | {"FieldLayout"} == ours


@pytest.mark.parametrize(
    "struct",
    [
        structs.EncodeRule,
        structs.EncodeStats,
        structs.MoeArguments,
        structs.AttendArguments,
        structs.PackedMatrix,
        structs.StreamArguments,
    ],
    ids=lambda struct: struct.__name__,
)
def test_sizes_and_offsets(struct: type[ctypes.Structure], compiled: Layouts) -> None:
    ours = {"": (0, ctypes.sizeof(struct))}
    for name, *_ in struct._fields_:
        field = getattr(struct, name)
        ours[name] = (field.offset, field.size)
    assert ours == compiled[struct.__name__]
