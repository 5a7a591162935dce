"""LoRA on experts in the model's dtype, for which vLLM's CPU kernels take none, and `--lora-target-modules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.lora_gold import ADAPTERS, BASE, LOGPROBS, PROMPT
from helpers.vllm_engine import _table, distance, free, load

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(400)]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "router"]


@pytest.fixture(params=[None, TARGETS], ids=["all", "attention"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[Any, bool]]:
    llm = load(BASE, enable_lora=True, max_lora_rank=8, max_num_batched_tokens=64, lora_target_modules=request.param)
    yield llm, request.param is None
    free(llm)


def test_both_kinds_are_served_where_they_are_allowed(engine: tuple[Any, bool]) -> None:
    """Without the plugin the first engine does not start, and the second serves the base under the experts' name."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    llm, allowed = engine
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    for i, name in enumerate(["attention", "experts"] if allowed else ["attention"], 1):
        asked = LoRARequest(name, i, str(ADAPTERS / name))
        (out,) = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False, lora_request=asked)
        gold = np.load(ADAPTERS / name / LOGPROBS)["logprobs"][: len(PROMPT) - 1].astype(np.float64)
        largest, kl = distance(_table(out.prompt_logprobs[1:]), gold)
        assert largest < 1e-3 and kl < 1e-6, name
    if not allowed:
        words = r"mlp\.experts: --lora-target-modules .* leaves out modules.*add experts to it.*gptoss-convert to-hf"
        with pytest.raises(ValueError, match=words):
            llm.llm_engine.add_lora(LoRARequest("experts", 2, str(ADAPTERS / "experts")))
