"""The torch operators: same numbers as the numpy functions, visible to torch.compile and torch.export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from gptoss_adapters import mxfp4
from gptoss_adapters.mxfp4 import torch_ops
from gptoss_adapters.mxfp4.products import ExpertWeights
from gptoss_adapters.reference.model import GptOss

TINY = Path(__file__).parents[1] / "data" / "checkpoints" / "tiny" / "hf-mxfp4"


@pytest.fixture
def layer() -> ExpertWeights:
    rng = np.random.default_rng(0)

    def part(rows: int, width: int) -> list[np.ndarray]:
        blocks, scales = mxfp4.encode(rng.standard_normal((4, rows, width)).astype(np.float32))
        return [blocks, scales, rng.standard_normal((4, rows)).astype(np.float32)]

    return ExpertWeights(*part(128, 96), *part(96, 64))


def arguments(layer: ExpertWeights, tokens: int) -> tuple[object, ...]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, 96)).astype(np.float32)
    ids = np.array([rng.permutation(4)[:2] for _ in range(tokens)], np.int32)
    weights = [torch.from_numpy(getattr(layer, f)) for f in ExpertWeights.__dataclass_fields__]
    routed = (torch.from_numpy(ids), torch.from_numpy(rng.random((tokens, 2)).astype(np.float32)))
    return torch.from_numpy(x), *weights, *routed, 1.702, 7.0, "q24"


def test_moe_op_is_moe(layer: ExpertWeights) -> None:
    args = arguments(layer, 5)
    x, ids, w = args[0].numpy(), args[7].numpy(), args[8].numpy()
    np.testing.assert_array_equal(torch_ops.mxfp4_moe(*args).numpy(), mxfp4.moe(x, layer, ids, w, 1.702, 7.0))


def test_opcheck(layer: ExpertWeights) -> None:
    args = arguments(layer, 3)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch_ops.mxfp4_moe, args, test_utils=tests)
    matrix = (args[0], args[1][0], args[2][0], args[3][0], "q16")
    torch.library.opcheck(torch_ops.mxfp4_matmul, matrix, test_utils=tests)
    dense = (args[0], torch.randn(7, 96).bfloat16(), None)
    torch.library.opcheck(torch_ops.linear_bf16, dense, test_utils=tests)


def test_export_and_compile_see_through(layer: ExpertWeights) -> None:
    class Layer(torch.nn.Module):
        def forward(self, *args: object) -> torch.Tensor:
            return torch_ops.mxfp4_moe(*args, 1.702, 7.0, "q24") * 2

    args = arguments(layer, 3)[:-3]
    expected = torch_ops.mxfp4_moe(*args, 1.702, 7.0, "q24") * 2
    assert torch.equal(torch.export.export(Layer(), args).module()(*args), expected)
    compiled = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), expected)


def test_linear_bf16_op() -> None:
    x, w, bias = torch.randn(2, 3, 64), torch.randn(10, 64).bfloat16(), torch.randn(10)
    torch.testing.assert_close(
        torch_ops.linear_bf16(x, w, bias), torch.nn.functional.linear(x, w.float(), bias), rtol=1e-5, atol=1e-5
    )


def test_the_whole_model_exports_and_compiles_with_the_products_as_nodes(tmp_path: Path) -> None:
    model = GptOss.from_checkpoint(TINY)
    ids, other = torch.arange(5, 17)[None], torch.arange(90, 99)[None]
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(model.as_module(), (ids,), dynamic_shapes={"input_ids": {1: length}})
    nodes = Counter(str(n.target) for n in program.graph.nodes)
    layers = model.config.num_hidden_layers
    assert (
        nodes["gptoss.mxfp4_moe.default"] == layers and nodes["gptoss.linear_bf16.default"] == 5 * layers + 1
    )  # q, k, v, o, router; head
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for prompt in (ids, other):  # few tokens: other norms and attention, each 1.2e-6 from float64
        traced, eager = loaded(prompt), model(prompt)
        assert (traced - eager).norm() <= 5e-6 * eager.norm()
    compiled = torch.compile(model.as_module(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(ids), loaded(ids))
