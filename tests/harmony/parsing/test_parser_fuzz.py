"""A slice of what bench/fuzz_harmony.py runs at length, and hypothesis on top."""

from helpers.stream_checks import check_reference, check_robust, check_text
from hypothesis import given, settings
from hypothesis import strategies as st


def test_reference_slice() -> None:
    for seed in range(600):
        check_reference(seed)


def test_robust_slice() -> None:
    for seed in range(3000):
        check_robust(seed)


def test_text_slice() -> None:
    for seed in range(1500):
        check_text(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(10**9, 10**12))
def test_reference_anywhere(seed: int) -> None:
    check_reference(seed)


@settings(max_examples=200, deadline=None)
@given(st.integers(10**9, 10**12))
def test_robust_anywhere(seed: int) -> None:
    check_robust(seed)
