"""Experts that are quantised while they load are encoded once on a machine, by whatever processes and however often
they are loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import vllm_engine as engine

from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.checkpoint.synthetic import checkpoints as synthetic
from gptoss_adapters.checkpoint.writing import writer

pytestmark = [pytest.mark.backend("vllm"), pytest.mark.timeout(600)]
TINY = engine.GOLD / "tiny"
TESTS = Path(__file__).parents[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gptoss_adapters"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shape of every expert that is encoded."""
    found: list[Any] = []
    real = mxfp4.encode

    def encode(x: Any, rule: str = "mse", scales_from: Any = None) -> Any:
        found.append(x.shape)
        return real(x, rule, scales_from)

    monkeypatch.setattr(mxfp4, "encode", encode)
    return found


def read_all(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from gptoss_adapters.vllm_plugin import quantised

    checkpoint = open_checkpoint(path)
    read = quantised.open_quantised(checkpoint)
    return {name: read(name) for name in quantised.list_dense_experts(checkpoint)}


def count_experts(path: Path) -> int:
    config = open_checkpoint(path).config
    return config.num_hidden_layers * 2 * config.num_experts


def test_the_second_start_encodes_nothing(cache: Path, encoded: list[Any]) -> None:
    packed = open_checkpoint(TINY / "hf-mxfp4")
    for _ in range(2):  # what was dequantised MXFP4 comes back
        for name, (blocks, scales) in read_all(TINY / "hf-bf16").items():
            wanted = packed.mxfp4(name)
            assert np.array_equal(
                mxfp4.decode(blocks, scales, np.float32), mxfp4.decode(wanted[0], wanted[1], np.float32)
            )
    assert len(encoded) == count_experts(TINY / "hf-bf16")
    assert len(list(cache.glob("*.safetensors"))) == 1 and not list(cache.glob("*.part"))


def test_it_is_known_by_its_content(cache: Path, encoded: list[Any], tmp_path: Path) -> None:
    """A copy elsewhere is the same model; one changed byte of an expert in place is another one."""
    read_all(TINY / "hf-bf16")
    shutil.copytree(TINY / "hf-bf16", tmp_path / "copy", copy_function=shutil.copyfile)
    before = read_all(tmp_path / "copy")
    assert len(encoded) == count_experts(TINY / "hf-bf16")
    name = next(iter(before))
    checkpoint = open_checkpoint(tmp_path / "copy")
    (source,) = checkpoint.tensors[name].sources
    with source.file.open("r+b") as file:  # the first value becomes 3.0
        file.seek(source.offset)
        file.write(b"\x40\x40")
    after = read_all(tmp_path / "copy")
    assert len(encoded) == 2 * count_experts(TINY / "hf-bf16")
    assert not np.array_equal(before[name][0], after[name][0])
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_a_damaged_file_is_made_again(cache: Path, encoded: list[Any]) -> None:
    whole = {name: blocks.copy() for name, (blocks, _) in read_all(TINY / "hf-bf16").items()}
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    again = read_all(TINY / "hf-bf16")
    assert all(np.array_equal(whole[name], again[name][0]) for name in whole)
    assert len(encoded) == 2 * count_experts(TINY / "hf-bf16")


def test_without_a_place_it_works_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[Any]
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    assert len(read_all(TINY / "hf-bf16")) == open_checkpoint(TINY / "hf-bf16").config.num_hidden_layers * 2
    assert len(encoded) == count_experts(TINY / "hf-bf16")


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gptoss_adapters import mxfp4
from gptoss_adapters.checkpoint import open_checkpoint
from gptoss_adapters.vllm_plugin import quantised
real, n = mxfp4.encode, 0
def encode(*args, **more):
    global n
    n += 1
    return real(*args, **more)
mxfp4.encode = encode
quantised.open_quantised(open_checkpoint(Path(sys.argv[1])))
print("ENCODED", n)
"""


def test_processes_that_start_together_wait_for_the_first(cache: Path) -> None:
    """One of them encodes while it holds the lock that the others wait for."""
    argv = [sys.executable, "-c", CHILD, str(TINY / "hf-bf16"), str(TESTS)]
    done: list[str] = []

    def run() -> None:
        done.append(subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(os.environ)).stdout)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = sorted(int(line.split()[1]) for out in done for line in out.splitlines() if line.startswith("ENCODED"))
    assert counts == [0, 0, count_experts(TINY / "hf-bf16")], done


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tensor_parallel_size": 2}, id="tp2"),
        pytest.param({"tensor_parallel_size": 2, "enable_expert_parallel": True}, id="ep2", marks=pytest.mark.slow),
    ],
)
def test_ranks_in_processes_of_their_own_encode_once(options: dict[str, Any], cache: Path, tmp_path: Path) -> None:
    """And serve what the converted checkpoint would give, with every rank's part in the self-check."""
    path, packed = tmp_path / "model", tmp_path / "packed"
    writer.write(synthetic.plan_new("p5", path, kind="hf-bf16"), sync=False, read_back=False)
    writer.write(synthetic.plan_new("p5", packed, kind="hf-mxfp4"), sync=False, read_back=False)
    prompts = [np.random.default_rng(11).integers(0, 300, 20).tolist()]
    switches = {"GPTOSS_ADAPTERS_QUANTIZE": "mxfp4", "GPTOSS_ADAPTERS_SELFCHECK": "require"}
    how = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.vllm_multi", str(path), json.dumps(options), json.dumps(prompts)],
        env=os.environ | engine.ENVIRONMENT | how | switches,
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    said = done.stdout + done.stderr
    (line,) = [text for text in done.stdout.splitlines() if text.startswith("RESULT")] or [said[-6000:]]
    assert line.startswith("RESULT"), line
    assert said.count("quantised the experts in") == 1 and said.count("experts in MXFP4 from") == 2, said[-6000:]
    assert said.count("self-check passed") == 1
    for ids, out in zip(prompts, json.loads(line.removeprefix("RESULT ")), strict=True):
        difference, kl = engine.distance(np.array(out["logprobs"]), engine.reference(packed, ids + out["ids"][:-1]))
        assert difference <= 0.02 and kl <= 1e-5, (difference, kl)
