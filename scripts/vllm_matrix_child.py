"""In the process of one vLLM version: the parser's tests and engines, told in JSON to a file as they end.

python scripts/vllm_matrix_child.py OUT PART...
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1] / "tests"
PARSER_TESTS = ("test_vllm_harmony.py", "test_vllm_tags.py")
NEW = 8  # tokens


class Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "failed":
            self.failed.append(report.nodeid.partition("::")[2])
        elif report.when == "call":
            self.passed += report.outcome == "passed"


def run_parser_tests() -> dict[str, Any]:
    outcomes = Outcomes()
    files = [str(TESTS / "vllm_plugin" / name) for name in PARSER_TESTS]
    pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not trace", *files], plugins=[outcomes])
    return {"passed": outcomes.passed, "failed": outcomes.failed}


def run_engines() -> dict[str, Any]:
    """Greedy tokens of the same weights in two layouts: MXFP4 as published, and bf16 with experts apart."""
    from helpers import kinds
    from helpers import vllm_engine as engine

    tiny = engine.GOLD / "tiny"
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        apart = kinds.write_kind(tiny / "hf-bf16", "hf-defused", Path(scratch) / "hf-defused", spelling=5)
        for path in (tiny / "hf-mxfp4", apart):
            try:
                found[path.name] = generate(engine, path)
            except Exception as error:
                found[path.name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found


def generate(engine: Any, path: Path) -> dict[str, Any]:
    from vllm import SamplingParams

    llm = engine.load(path)
    model = engine.model_of(llm)
    sampling = SamplingParams(temperature=0, max_tokens=NEW, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": list(range(start, start + 20))} for start in (10, 100)]
    tokens = [list(out.outputs[0].token_ids) for out in llm.generate(prompts, sampling, use_tqdm=False)]
    experts = model.model.layers[0].mlp.experts
    routed = getattr(experts, "routed_experts", experts)
    told = {"tokens": tokens, "model": type(model).__module__, "experts": type(routed.quant_method).__name__}
    del model, experts, routed
    engine.free(llm)
    return told


def main(out: str, *parts: str) -> None:
    from helpers.vllm_engine import ENVIRONMENT

    # With AMX vLLM's own kernels would be asked, some of which want bfloat16 or other sizes: the same on any CPU.
    torch.cpu._is_amx_tile_supported = lambda: False
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    found = {}
    for part in parts:
        found[part] = {"parser_tests": run_parser_tests, "engines": run_engines}[part]()
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
