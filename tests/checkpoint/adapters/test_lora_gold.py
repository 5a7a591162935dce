"""What vLLM's tests of adapters compare with, computed again by PEFT, which has no place beside vLLM's pins."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.lora_gold import ADAPTERS, LOGPROBS, MADE, read_logprobs


@pytest.mark.parametrize("name", MADE)
def test_the_gold_is_pefts(name: str) -> None:
    kept = np.load(ADAPTERS / name / LOGPROBS)["logprobs"]
    assert np.abs(read_logprobs(ADAPTERS / name) - kept).max() < 1e-3
