"""Adapters that PEFT made, of every sort that its config can ask for: merged as it merges them, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers.peft_cases import load_tiny, make_adapter, make_case, merge_by_peft, write_tiny

from gptoss_adapters.checkpoint import Checkpoint, layouts, open_checkpoint
from gptoss_adapters.checkpoint.lora import with_adapters
from gptoss_adapters.checkpoint.storage import SWAPPED
from gptoss_adapters.errors import BadInput

SEEDS = range(72)
BF16_STEP = 2.0**-7  # relative, at most: 8 significant bits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("peft") / "base")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return load_tiny(base)


def find_differences(ours: Checkpoint, theirs: dict[str, np.ndarray]) -> list[str]:
    """Tensors that are further than a step of bfloat16 from PEFT's float32."""
    out = []
    for name, parts in layouts.parts("hf-bf16", ours.config).items():
        wanted = theirs[parts[0].name]
        wanted = wanted.swapaxes(1, 2) if parts[0].storage == SWAPPED else wanted
        got = ours.read(name, np.float32)
        if ours.tensors[name].encoding == "bf16":
            wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
        if got.shape != wanted.shape:
            out.append(f"{name}: {got.shape} for {wanted.shape}")
        elif not np.all(np.abs(got - wanted) <= np.abs(wanted) * BF16_STEP + 1e-6):
            out.append(f"{name}: off by {np.abs(got - wanted).max():.3g}")
    return out


def check_case(seed: int, base: Path, model: Any, folder: Path) -> bool:
    """Whether the adapter was merged, as PEFT merges it; else it was refused, by the word that it must be."""
    case = make_case(seed)
    make_adapter(model, case, seed, folder)
    try:
        ours = with_adapters(open_checkpoint(base), [(folder, 1.0)])
    except BadInput as e:
        assert case.refused and case.refused in str(e), (case, str(e))
        return False
    assert case.refused is None, case
    assert ours.config.vocab_size == case.vocabulary, case
    assert not find_differences(ours, merge_by_peft(model, case, seed, folder)), case
    return True


@pytest.mark.parametrize("seed", SEEDS)
def test_generated_adapters_merge_as_peft_merges_them(seed: int, base: Path, model: Any, tmp_path: Path) -> None:
    assert check_case(seed, base, model, tmp_path / "a") == (make_case(seed).refused is None)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_many_more_generated_adapters(block: int, base: Path, model: Any, tmp_path: Path) -> None:
    merged = sum(check_case(1000 + 60 * block + n, base, model, tmp_path / str(n)) for n in range(60))
    assert merged > 40
