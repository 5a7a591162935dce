"""A slice of what bench/fuzz_harmony.py runs at length, and hypothesis on top."""

from helpers.stream_checks import check_strict, check_text, check_tolerant
from hypothesis import given, settings
from hypothesis import strategies as st


def test_strict_slice() -> None:
    for seed in range(600):
        check_strict(seed)


def test_tolerant_slice() -> None:
    for seed in range(3000):
        check_tolerant(seed)


def test_text_slice() -> None:
    for seed in range(1500):
        check_text(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(10**9, 10**12))
def test_strict_anywhere(seed: int) -> None:
    check_strict(seed)


@settings(max_examples=200, deadline=None)
@given(st.integers(10**9, 10**12))
def test_tolerant_anywhere(seed: int) -> None:
    check_tolerant(seed)
