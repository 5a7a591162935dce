"""Tensor, expert and pipeline parallel loading, rank by rank in this one process: vLLM is told that it is rank r of n,
loads, and the ranks' slices together must be the checkpoint's own bytes. Then the expert layers of all ranks compute,
and must add up.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import kinds
from helpers import vllm_engine as engine

from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.formats.shards import plan_checkpoint
from gptoss_adapters.checkpoint.kinds import Kind
from gptoss_adapters.checkpoint.synthetic import checkpoints as synthetic
from gptoss_adapters.checkpoint.writing import writer
from gptoss_adapters.errors import UsageError
from gptoss_adapters.reference.linear import as_tensor
from gptoss_adapters.spec import GptOssConfig

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(300)]

# 8 MXFP4 blocks of intermediate rows over 4 ranks, 1000 rows of vocabulary padded by vLLM, heads and experts in four
# parts
CONFIG = GptOssConfig(
    num_hidden_layers=3,
    num_experts=8,
    experts_per_token=2,
    vocab_size=1003,
    hidden_size=128,
    intermediate_size=160,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=4,
    sliding_window=12,
    bos_token_id=1000,
    pad_token_id=1001,
    eos_token_id=1002,
)
WIDE = {"intermediate_size": 128}  # vLLM's kernels for bf16 experts want 32 rows per rank
CUTS = {
    "tp2": {"tp": 2},
    "tp4": {"tp": 4},
    "ep2": {"tp": 2, "ep": True},
    "pp2": {"pp": 2},
    "tp2-pp2": {"tp": 2, "pp": 2},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from dataclasses import replace

    top, found = tmp_path_factory.mktemp("ranks"), {}
    for kind, config in ((Kind.HF_MXFP4, CONFIG), (Kind.HF_BF16, replace(CONFIG, **WIDE))):
        found[kind] = top / kind
        found[kind].mkdir()
        writer.write(
            plan_checkpoint(synthetic.SeedMade(config, 1, "ranks"), kind, found[kind], {}, "ranks"),
            sync=False,
            read_back=False,
        )
    for kind, source in (("hf-quark", Kind.HF_MXFP4), ("hf-defused", Kind.HF_BF16)):
        found[kind] = kinds.write_kind(found[source], kind, top / kind)
    return found


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """vLLM's process groups, of one process."""
    os.environ.update({k: v for k, v in engine.ENVIRONMENT.items() if k not in os.environ})
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, parallel_state
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        yield
        cleanup_dist_env_and_memory()


@contextmanager
def rank(r: int, *, tp: int = 1, pp: int = 1, ep: bool = False) -> Iterator[Any]:
    """vLLM believes that it is process r of tp x pp; gives the function that makes a rank's config of a path."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs

    told = {"_TP": (r % tp, tp), "_EP": (r % tp, tp), "_PP": (r // tp, pp)}
    kept = {name: getattr(parallel_state, name) for name in told}
    for name, (at, size) in told.items():
        group = copy.copy(kept[name])
        group.rank_in_group, group.world_size, group.ranks = at, size, list(range(size))
        setattr(parallel_state, name, group)

    @contextmanager
    def loaded(path: Path, **more: Any) -> Iterator[Any]:
        config = EngineArgs(
            model=str(path), dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=256
        ).create_engine_config()
        config.parallel_config.tensor_parallel_size, config.parallel_config.pipeline_parallel_size = tp, pp
        config.parallel_config.enable_expert_parallel = ep
        with set_current_vllm_config(config):
            yield _load(config, **more)

    try:
        yield loaded
    finally:
        for name, group in kept.items():
            setattr(parallel_state, name, group)


def _load(config: Any, finish: bool = False) -> Any:
    """What vLLM's loader does; the kernels' own layouts (`finish`) come after the slices."""
    import torch
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
    from vllm.model_executor.models import utils
    from vllm.utils.torch_utils import set_default_torch_dtype

    utils._model_to_pp_missing_layer_names.clear()  # by the address of a model, and the last one's may be this one's
    with set_default_torch_dtype(torch.float32):
        model = initialize_model(vllm_config=config, model_config=config.model_config)
    get_model_loader(config.load_config).load_weights(model, config.model_config)
    if finish:
        process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model


def slices(path: Path, cut: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Every rank's parameters by vLLM's names."""
    found = []
    for r in range(cut.get("tp", 1) * cut.get("pp", 1)):
        with rank(r, **cut) as loaded, loaded(path) as model:
            found.append({name: value.detach().numpy().copy() for name, value in model.named_parameters()})
    return found


def joined(parts: list[np.ndarray], axis: int, length: int) -> np.ndarray:
    """The ranks' slices, one after another; behind `length` is padding, which must be zero."""
    whole = np.concatenate(parts, axis)
    kept, padding = np.split(whole, [length], axis)
    assert not padding.any()
    return kept


def rows(parts: list[np.ndarray], sizes: tuple[int, ...]) -> list[np.ndarray]:
    """q, k and v out of the ranks' stacked rows."""
    n = len(parts)
    pieces = [np.split(part, np.cumsum([size // n for size in sizes])[:-1]) for part in parts]
    return [np.concatenate([piece[which] for piece in pieces]) for which in range(len(sizes))]


@dataclass
class Layer:
    """One layer as checkpoint `c` has it under the prefix `ours`, and as the tensor-parallel ranks do under `at`."""

    c: Any
    ours: str
    ranks: list[dict[str, np.ndarray]]
    at: str

    def stored(self, name: str) -> np.ndarray:
        return as_tensor(self.c.array(f"{self.ours}.{name}")).float().numpy()

    def parts(self, name: str) -> list[np.ndarray]:
        return [values[f"{self.at}.{name}"] for values in self.ranks]

    def experts(self, name: str) -> list[np.ndarray]:
        return self.parts(f"mlp.experts.routed_experts.{name}")


def check_layer(layer: Layer, ep: bool) -> None:
    check_attention(layer)
    alike = {
        "attn.o_proj.bias": "o_proj.bias",
        "mlp.router.weight": "router.weight",
        "mlp.router.bias": "router.bias",
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "mlp_norm.weight",
    }
    for theirs, name in alike.items():
        assert all(np.array_equal(part, layer.stored(name)) for part in layer.parts(theirs)), theirs
    check_experts(layer, ep)


def check_attention(layer: Layer) -> None:
    config = layer.c.config
    for what in ("weight", "bias"):
        found = rows(layer.parts(f"attn.qkv_proj.{what}"), (config.q_rows, config.kv_rows, config.kv_rows))
        for letter, whole in zip("qkv", found, strict=True):
            assert np.array_equal(whole, layer.stored(f"{letter}_proj.{what}")), letter
    assert np.array_equal(joined(layer.parts("attn.o_proj.weight"), 1, config.q_rows), layer.stored("o_proj.weight"))
    assert np.array_equal(joined(layer.parts("attn.sinks"), 0, config.num_attention_heads), layer.stored("sinks"))


def check_experts(layer: Layer, ep: bool) -> None:
    """Of each parameter the ranks share out one axis: with expert parallel always the first one."""
    e, inter = layer.c.config.num_experts, layer.c.config.intermediate_size
    up, down = ((0, e), (0, e)) if ep else ((1, 2 * inter), (2, inter))
    assert np.array_equal(joined(layer.experts("w13_bias"), *up), layer.stored("experts.gate_up.bias"))
    if ep:
        assert np.array_equal(joined(layer.experts("w2_bias"), 0, e), layer.stored("experts.down.bias"))
    else:  # the ranks' outputs are summed, so one has the bias
        first, *rest = layer.experts("w2_bias")
        assert np.array_equal(first, layer.stored("experts.down.bias")) and not any(part.any() for part in rest)
    if layer.c.tensors[f"{layer.ours}.experts.down.weight"].encoding == "mxfp4":
        check_packed_experts(layer, up, ep)
    else:
        assert np.array_equal(joined(layer.experts("w13_weight"), *up), layer.stored("experts.gate_up.weight"))
        assert np.array_equal(joined(layer.experts("w2_weight"), *down), layer.stored("experts.down.weight"))


def check_packed_experts(layer: Layer, up: tuple[int, int], ep: bool) -> None:
    config = layer.c.config
    e, inter = config.num_experts, config.intermediate_size
    blocks, scales = layer.c.mxfp4(f"{layer.ours}.experts.gate_up.weight")
    assert np.array_equal(joined(layer.experts("w13_weight"), *up), blocks.reshape(e, 2 * inter, -1))
    assert np.array_equal(joined(layer.experts("w13_weight_scale"), *up), scales)
    blocks, scales = layer.c.mxfp4(f"{layer.ours}.experts.down.weight")
    packed, grouped = ((0, e), (0, e)) if ep else ((2, inter // 2), (2, inter // 32))
    assert np.array_equal(joined(layer.experts("w2_weight"), *packed), blocks.reshape(e, config.hidden_size, -1))
    assert np.array_equal(joined(layer.experts("w2_weight_scale"), *grouped), scales)


@pytest.mark.parametrize("kind", [Kind.HF_MXFP4, "hf-quark", Kind.HF_BF16, "hf-defused"])
@pytest.mark.parametrize("cut", CUTS)
def test_the_ranks_slices_are_the_checkpoint(cut: str, kind: str, checkpoints: dict[str, Path], world: None) -> None:
    sizes, c = CUTS[cut], open_checkpoint(checkpoints[kind])
    tp, pp = sizes.get("tp", 1), sizes.get("pp", 1)
    found = slices(checkpoints[kind], sizes)
    stages = [found[stage * tp : (stage + 1) * tp] for stage in range(pp)]
    seen: list[int] = []
    for stage in stages:
        numbers = sorted({int(name.split(".")[2]) for name in stage[0] if name.startswith("model.layers.")})
        assert numbers and all(
            {n for n in values if ".layers." in n} == {n for n in stage[0] if ".layers." in n} for values in stage
        )
        for n in numbers:
            check_layer(Layer(c, f"layers.{n}", stage, f"model.layers.{n}"), sizes.get("ep", False))
        seen += numbers
    assert seen == list(range(c.config.num_hidden_layers))  # every layer in one stage, in order
    table = {
        name: as_tensor(c.array(f"{name}.weight")).float().numpy() for name in ("embedding", "norm", "unembedding")
    }
    assert np.array_equal(
        joined([values["model.embedding.weight"] for values in stages[0]], 0, c.config.vocab_size), table["embedding"]
    )
    assert np.array_equal(
        joined([values["lm_head.weight"] for values in stages[-1]], 0, c.config.vocab_size), table["unembedding"]
    )
    assert all(np.array_equal(values["model.norm.weight"], table["norm"]) for values in stages[-1])


@pytest.mark.parametrize("cut", ["tp2", "tp4", "ep2"])
def test_the_ranks_expert_layers_add_up(cut: str, checkpoints: dict[str, Path], world: None) -> None:
    import torch

    from gptoss_adapters.reference.experts import load_experts
    from gptoss_adapters.reference.model import DEFINITION

    sizes, c = CUTS[cut], open_checkpoint(checkpoints[Kind.HF_MXFP4])
    rng = torch.Generator().manual_seed(3)
    x, scores = torch.randn(9, CONFIG.hidden_size, generator=rng), torch.randn(9, CONFIG.num_experts, generator=rng)
    top, chosen = scores.topk(CONFIG.experts_per_token, dim=-1)
    total = torch.zeros_like(x)
    for r in range(sizes["tp"]):
        with rank(r, **sizes) as loaded, loaded(checkpoints[Kind.HF_MXFP4], finish=True) as model:
            layer = model.model.layers[1].mlp.experts.routed_experts
            total += layer.quant_method.apply(layer, x, top.softmax(-1), chosen.int(), None, None)
    expected = load_experts(c, 1, torch.float32, torch.device("cpu"), "oracle", DEFINITION)(x, chosen, top.softmax(-1))
    assert float((total - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ({"tp": 8}, r"--tensor-parallel-size: 8 ranks do not divide num_key_value_heads 4: give one of 1, 2, 4"),
        (
            {"tp": 3},
            r"3 ranks do not divide num_attention_heads 8, num_key_value_heads 4, intermediate_size 160: give one of",
        ),
        ({"tp": 4, "ep": True}, ""),
    ],
)
def test_sizes_that_do_not_divide_are_refused_in_words(
    cut: dict[str, Any], said: str, checkpoints: dict[str, Path], world: None
) -> None:
    with (
        rank(0, **cut) as loaded,
        pytest.raises(UsageError, match=said) if said else nullcontext(),
        loaded(checkpoints[Kind.HF_MXFP4]),
    ):
        pass


def test_experts_that_the_ranks_do_not_divide(checkpoints: dict[str, Path], world: None, tmp_path: Path) -> None:
    writer.write(synthetic.plan_new("odd-shape", tmp_path / "odd"), sync=False, read_back=False)
    with (
        rank(1, tp=2, ep=True) as loaded,
        pytest.raises(UsageError, match="2 ranks do not divide num_experts 5: give one of 1, 5"),
        loaded(tmp_path / "odd"),
    ):
        pass


def test_backends_that_drop_the_constants_are_not_used(checkpoints: dict[str, Path], world: None) -> None:
    """On vLLM's own tables of backends; none of the kernels that take them runs on a CPU, so all ends in words."""
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4 as oracle

    from gptoss_adapters.vllm_plugin import device_experts as device

    named = {backend.name for asked in device.ASKED_AS for backend in oracle.map_mxfp4_backend(asked)}
    assert named == set(device.OBEYING) and set(device.OBEYING) <= {backend.name for backend in oracle.Mxfp4MoeBackend}
    with rank(0) as loaded, loaded(checkpoints[Kind.HF_BF16]) as model:
        moe = copy.copy(model.model.layers[0].mlp.experts.moe_config)
        with pytest.raises(UsageError, match=r"no expert kernels that run here take the .* \(alpha 0.9, limit 5.0\)"):
            device.DenseWithConstants(moe, 0.9, 5.0)
        assert (moe.moe_backend, moe.swiglu_alpha, moe.swiglu_beta, moe.swiglu_limit) == ("auto", 0.9, 1.0, 5.0)
        moe.moe_backend = "triton"
        with pytest.raises(UsageError, match=r"--moe-backend triton: its kernels .* do not take the checkpoint's"):
            device.settle_backend(moe, lambda: "MARLIN", device.OBEYING, device.ASKED_AS)
        moe.moe_backend = "auto"
        able = {"auto": "TRITON", "flashinfer_cutlass": "FLASHINFER_CUTLASS_MXFP4_BF16"}
        device.settle_backend(moe, lambda: able.get(moe.moe_backend, "MARLIN"), device.OBEYING, device.ASKED_AS)
        assert moe.moe_backend == "flashinfer_cutlass"
