"""The NEON kernels, cross-compiled and run under qemu-user: correctness only. Needs g++-aarch64-linux-gnu and
qemu-user.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gptoss_adapters.mxfp4 import oracle

pytestmark = pytest.mark.slow
NATIVE = Path(__file__).parents[2] / "gptoss_adapters" / "kernels" / "native"
PER_ISA = ("bf16_packed", "layer_ops", "matmul", "mxfp4_codec", "mxfp4_encode")
FLAGS = [f"-I{NATIVE}", "-std=c++17", "-O2", "-ffp-contract=off", "-static", "-pthread"]
BOUND = (1e-6, 5e-2, 1e-4, 1e-6)  # f32, q8, q16, q24


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neon")
    compiler = "aarch64-linux-gnu-g++"
    objects = []
    for isa, march in (("portable", "armv8-a"), ("neon", "armv8.2-a+dotprod")):
        for source in PER_ISA:
            out = folder / f"{source}_{isa}.o"
            subprocess.run(
                [
                    compiler,
                    *FLAGS,
                    f"-march={march}",
                    f"-DKERNELS_ISA={isa}",
                    "-c",
                    str(NATIVE / f"{source}.cpp"),
                    "-o",
                    str(out),
                ],
                check=True,
            )
            objects.append(str(out))
    rest = [str(path) for path in NATIVE.glob("*.cpp") if path.stem not in (*PER_ISA, "gemm_amx", "gemm_vnni")]
    main = Path(__file__).parents[1] / "helpers" / "neon_main.cpp"
    command = [
        compiler,
        *FLAGS,
        *rest,
        str(main),
        *objects,
        "-o",
        str(folder / "run"),
    ]
    subprocess.run(command, check=True)
    return folder / "run"


@dataclass
class Answer:
    """What the program made of one request, as bytes in the order that it writes them."""

    ggml: bytes
    values: bytes
    encoded: list[bytes]
    products: list[bytes]
    normed: bytes
    attended: bytes
    packed: bytes


def ask(program: Path, isa: str, blocks: np.ndarray, scales: np.ndarray, x: np.ndarray) -> Answer:
    rows, groups, tokens = *scales.shape, len(x)
    request = np.array([rows, groups, tokens], np.int64).tobytes() + blocks.tobytes() + scales.tobytes() + x.tobytes()
    answer = subprocess.run(
        ["qemu-aarch64", str(program), isa], input=request, capture_output=True, check=True, timeout=300
    ).stdout
    n, product = tokens * groups, tokens * rows * 4
    sizes = (rows * groups * 17, rows * groups * 128, n * 16, n, n * 16, n, *[product] * 4, x.nbytes, x.nbytes, product)
    ggml, values, *rest = split(answer, *sizes)
    return Answer(ggml, values, rest[:4], rest[4:8], *rest[8:])


@pytest.mark.parametrize("isa", ["neon", "portable"])
@pytest.mark.parametrize(("rows", "groups", "tokens"), [(65, 1, 3), (70, 3, 2), (33, 6, 7), (64, 90, 4)])
def test_every_kernel(program: Path, isa: str, rows: int, groups: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (rows, groups, 16), np.uint8)
    scales = rng.integers(112, 130, (rows, groups)).astype(np.uint8)
    x = rng.standard_normal((tokens, groups * 32)).astype(np.float32)
    x[:, ::97] *= 30
    answer = ask(program, isa, blocks, scales, x)
    assert answer.ggml == oracle.hf_to_ggml(blocks, scales).tobytes()
    assert answer.values == oracle.decode(blocks, scales).tobytes()
    wide = oracle.encode(x, oracle.RULES["mse"])
    short = oracle.encode((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), oracle.RULES["mse"], wide[1])
    assert answer.encoded == [a.tobytes() for a in (*wide, *short)]
    exact = x.astype(np.float64)
    normed, attended = (np.frombuffer(a, np.float32).reshape(x.shape) for a in (answer.normed, answer.attended))
    np.testing.assert_allclose(normed, exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5), rtol=3e-6)
    np.testing.assert_allclose(attended, attention(exact), rtol=1e-5, atol=1e-5)
    truth = exact @ oracle.decode(blocks, scales).astype(np.float64).T
    for product, bound in zip((*answer.products, answer.packed), (*BOUND, 1e-6), strict=True):
        y = np.frombuffer(product, np.float32).reshape(tokens, rows)
        assert np.sqrt(((y - truth) ** 2).mean() / (truth**2).mean()) <= bound


def attention(x: np.ndarray) -> np.ndarray:
    """x [T, 2 * hd] as queries, keys and values of two heads, sinks of 0.5, a window of 3."""
    tokens, out = len(x), []
    for head in np.split(x, 2, axis=1):
        scores = head @ head.T / np.sqrt(head.shape[1])
        scores[[[t < s or t - s >= 3 for s in range(tokens)] for t in range(tokens)]] = -np.inf
        weights = np.exp(
            np.concatenate((scores, np.full((tokens, 1), 0.5)), axis=1) - scores.max(axis=1, keepdims=True)
        )
        out.append(weights[:, :-1] / weights.sum(axis=1, keepdims=True) @ head)
    return np.concatenate(out, axis=1)


def split(data: bytes, *sizes: int) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    assert not data
    return pieces
