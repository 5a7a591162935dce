"""The decode step that a CUDA graph holds: its results as it runs without one, and that nothing in it asks the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_adapters.mxfp4 import triton_kernels
from gptoss_adapters.reference.decode_graph import SHORTEST, DecodeGraph, capturable, context_for
from gptoss_adapters.reference.generate import KeptCache, generate, prefill, stream
from gptoss_adapters.reference.model import GptOss

TINY = Path(__file__).parents[1] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"
CONTEXT = 64


@pytest.fixture(scope="module")
def model() -> GptOss:
    return GptOss.from_checkpoint(TINY, dtype=torch.float64)


@pytest.fixture(scope="module")
def on_kernels() -> GptOss:
    return GptOss.from_checkpoint(TINY, experts="triton")


@pytest.mark.parametrize("lengths", [[4], [1, 31, 30], [9, 2]], ids=str)
def test_steps_give_what_the_model_gives(model: GptOss, lengths: list[int]) -> None:
    """Shorter and longer than the window of 8, ragged, over the ring's end; and again after another prompt."""
    assert model.config.sliding_window == 8
    graph = DecodeGraph(model, len(lengths), CONTEXT)
    for seed in range(2):
        random = torch.Generator().manual_seed(seed)
        rows = [torch.randint(0, model.config.vocab_size, (n,), generator=random).tolist() for n in lengths]
        cache = model.new_cache()
        _, positions = prefill(model, rows, cache)
        graph.load(cache)
        for _ in range(CONTEXT - max(lengths)):
            tokens, positions = torch.randint(0, model.config.vocab_size, (len(rows),), generator=random), positions + 1
            want = model(tokens[:, None], cache=cache, positions=positions, last_only=True)
            torch.testing.assert_close(graph.step(tokens, positions), want, rtol=1e-11, atol=1e-11)


def test_generate_decodes_by_the_graph_where_it_is_worthwhile(model: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[5, 17, 300, 2], list(range(40, 60)), [9]]
    want, seen = generate(model, prompts, max_tokens=12, stop_ids=[]), []
    monkeypatch.setattr("gptoss_adapters.reference.generate.worthwhile", lambda *_: True)
    for _ in range(2):
        assert [a.tokens for a in generate(model, prompts, max_tokens=12, stop_ids=[])] == [a.tokens for a in want]
        seen.append(model.graph)
    assert seen[0] is seen[1] is not None and (seen[0].rows, seen[0].context) == (
        3,
        min(SHORTEST, model.config.max_position_embeddings),
    )
    kept, again = KeptCache(model), [*prompts[0], *want[0].tokens, 7]
    assert [s.token for s in stream(model, prompts[0], max_tokens=12, stop_ids=[], kept=kept)] == want[0].tokens
    assert kept.tokens == prompts[0]
    plain = [s.token for s in stream(model, again, max_tokens=4, stop_ids=[])]
    first = stream(model, again, max_tokens=4, stop_ids=[], kept=kept)
    one = next(first)  # another answer begins before this one has ended
    assert (
        [s.token for s in stream(model, again, max_tokens=4, stop_ids=[])]
        == plain
        == [one.token, *(s.token for s in first)]
    )


class AsksTheHost(TorchDispatchMode):
    """Raises where an operation's result has to be known to go on, which a stream under capture does not allow."""

    DEPENDENT = (
        "_local_scalar_dense",
        "nonzero",
        "unique",
        "_unique2",
        "masked_select",
        "bincount",
        "repeat_interleave",
        "is_nonzero",
        "equal",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.DEPENDENT:
            raise AssertionError(f"{name} in a step")
        return func(*args, **kwargs or {})


def test_nothing_in_a_step_waits_for_the_host(on_kernels: GptOss, monkeypatch: pytest.MonkeyPatch) -> None:
    model, token, position = on_kernels, torch.tensor([5]), torch.tensor([[0]])
    graph = DecodeGraph(model, 1, CONTEXT)
    assert capturable(model, 1)
    with AsksTheHost():
        logits = graph.step(token, position)
    want = model(token[:, None])
    assert (logits - want).norm() <= 5e-6 * want.norm()
    monkeypatch.setattr(
        triton_kernels, "DECODE_PAIRS", 0
    )  # tiles of pairs sorted by expert: their number is known by counting
    assert not capturable(model, 1)
    with AsksTheHost(), pytest.raises(AssertionError, match="in a step"):
        graph.step(token, position)


def test_which_models_a_graph_holds(model: GptOss, on_kernels: GptOss) -> None:
    most = triton_kernels.DECODE_PAIRS // on_kernels.config.experts_per_token
    assert capturable(on_kernels, most) and not capturable(on_kernels, most + 1)
    assert not capturable(model, 1)  # the oracle asks which experts were chosen
    assert [context_for(model, n) for n in (1, 1024, 1025)] == [1024, 1024, 2048]
    assert context_for(model, 10**6) == model.config.max_position_embeddings


def test_a_step_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on a device without memory, where an operation of two devices raises as it does on a GPU."""

    def on_one_device(x: Tensor, experts: Any, ids: Tensor, weights: Tensor, *_: Any) -> Tensor:
        return x + (weights.sum() + experts.down_bias.sum() + ids.sum()).to(x.dtype)

    monkeypatch.setattr(triton_kernels, "moe", on_one_device)
    model = GptOss.from_checkpoint(TINY, dtype=torch.bfloat16, device="meta")
    graph, cache = DecodeGraph(model, 2, CONTEXT), model.new_cache()
    ids, positions = (torch.zeros((2, 3), dtype=torch.int64, device="meta") for _ in range(2))
    model.forward(ids, positions, cache)
    graph.load(cache)
    logits = graph.step(torch.tensor([5, 6]), torch.tensor([[3], [3]]))
    assert logits.device.type == "meta" and logits.shape == (2, 1, model.config.vocab_size)
    model.layers[1][1].w["router.bias"] = torch.zeros(model.config.num_experts)
    with pytest.raises(RuntimeError, match="device"):
        graph.step(torch.tensor([5, 6]), torch.tensor([[4], [4]]))
