"""LoRA adapters served by vLLM's CPU engine: PEFT's merged log-probabilities, alone and side by side in one batch, and
what is refused in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.lora_forms import SPOILT, another_layer, as_unsloth, one_by_one, read, smaller, without_maker, write
from helpers.lora_gold import ADAPTERS, LOGPROBS, MADE, PROMPT
from helpers.vllm_engine import GOLD, _table, distance, free, load, reference

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(400)]
BASE = GOLD / "tiny" / "hf-mxfp4"


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    engine = load(BASE, enable_lora=True, max_loras=2, max_cpu_loras=4, max_lora_rank=8, max_num_batched_tokens=64)
    yield engine
    free(engine)


def ask(llm: Any, *adapters: str | None) -> list[np.ndarray]:
    """[T - 1, V]: the prompt's log-probabilities by each adapter (None: the base), all in one batch."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    requests = [name and LoRARequest(name, 1 + sorted(MADE).index(name), str(ADAPTERS / name)) for name in adapters]
    sampling = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=-1, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": PROMPT} for _ in adapters]
    out = llm.generate(prompts, sampling, use_tqdm=False, lora_request=requests)
    return [_table(one.prompt_logprobs[1:]) for one in out]


def gold(name: str | None) -> np.ndarray:
    """PEFT's merged model; of the base the reference."""
    table = reference(BASE, PROMPT) if name is None else np.load(ADAPTERS / name / LOGPROBS)["logprobs"]
    return np.asarray(table[: len(PROMPT) - 1], dtype=np.float64)


@pytest.mark.parametrize("name", MADE)
def test_an_adapter_gives_pefts_merged_logits(llm: Any, name: str) -> None:
    (ours,) = ask(llm, name)
    largest, kl = distance(ours, gold(name))
    assert largest < 1e-3 and kl < 1e-6
    assert distance(ours, gold(None))[0] > 1  # and the base's are others


def test_requests_with_and_without_adapters_share_a_batch(llm: Any) -> None:
    """vLLM's CPU kernels gave the base's tokens the last slot's adapter."""
    asked = ["experts", None, "attention", None]
    for name, ours in zip(asked, ask(llm, *asked), strict=True):
        largest, kl = distance(ours, gold(name))
        assert largest < 1e-3 and kl < 1e-6, name


def add(llm: Any, path: Path) -> None:
    """As `--lora-modules`, `/v1/load_lora_adapter` and resolvers do."""
    from vllm.lora.request import LoRARequest

    llm.llm_engine.add_lora(LoRARequest(path.name, 50, str(path)))


@pytest.mark.parametrize("change", [as_unsloth, one_by_one])
def test_other_tools_forms_are_served_alike(llm: Any, change: Any, tmp_path: Path) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    tensors, config = read("experts")
    change(tensors, config)
    path = write(tmp_path / change.__name__, tensors, config)
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    asked = LoRARequest(path.name, 60 + len(path.name), str(path))
    (out,) = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False, lora_request=asked)
    largest, kl = distance(_table(out.prompt_logprobs[1:]), gold("experts"))
    assert largest < 1e-3 and kl < 1e-6


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_served_never_loads(llm: Any, spoil: Any, tmp_path: Path) -> None:
    tensors, config = read("experts")
    spoil(tensors, config)
    with pytest.raises(ValueError, match=SPOILT[spoil]) as caught:
        add(llm, write(tmp_path / "a", tensors, config))
    assert "\n" not in str(caught.value) and 50 not in llm.llm_engine.list_loras()


@pytest.mark.parametrize("spoil", [another_layer, without_maker, smaller, as_unsloth])
def test_of_which_vllm_alone_says_nothing(llm: Any, spoil: Any, tmp_path: Path) -> None:
    """The negative control: its own loader takes these, and serves the base, or nonsense."""
    from vllm.lora.request import LoRARequest

    tensors, config = read("experts")
    spoil(tensors, config)
    worker = llm.llm_engine.model_executor.driver_worker.worker.model_runner.lora_manager
    builtin = type(worker)._load_adapter.__wrapped__
    lora = builtin(worker, LoRARequest("a", 51, str(write(tmp_path / "a", tensors, config))))
    assert lora.loras


def test_a_rank_above_the_limit_names_the_option(llm: Any, tmp_path: Path) -> None:
    tensors, config = read("experts")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors[name.format("A")], tensors[name.format("B")] = np.ones((12, 96), "f4"), np.ones((256, 12), "f4")
    config["rank_pattern"] = {r"layers\.0\.self_attn\.q_proj": 12}
    with pytest.raises(ValueError, match=r"at most 8, got 12.*--max-lora-rank 16"):
        add(llm, write(tmp_path / "a", tensors, config))
