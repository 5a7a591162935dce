"""Self-tests of the engines on a known model, and of the self-test on wrong engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gptoss_adapters.backends import open_backend, selftest
from gptoss_adapters.errors import CheckFailed

TINY = Path(__file__).parents[1] / "data" / "gguf" / "gguf" / "tiny-deq-f32.gguf"
ENGINES = [
    pytest.param("llama_cpp", marks=pytest.mark.backend("llama_cpp")),
    pytest.param("llama_server", marks=pytest.mark.backend("llama_server")),
]


@pytest.mark.parametrize(
    "name", [*ENGINES, "torch", pytest.param("transformers", marks=pytest.mark.backend("transformers"))]
)
def test_self_test(name: str) -> None:
    found = selftest.run(name)
    errors = {what: value for what, value in found.items() if what != "sampling z"}
    assert len(errors) >= 5 and max(errors.values()) < 1e-4


@pytest.mark.backend("llama_cpp")
def test_self_test_of_an_open_backend_uses_its_options() -> None:
    with open_backend("llama_cpp", TINY, n_ctx=1024, n_batch=100) as llama:
        assert selftest.run(llama)["logits"] < 1e-4


WRONG = """
from dataclasses import replace
import numpy as np
from gptoss_adapters.backends.llama_cpp import LlamaCpp

class Shifted(LlamaCpp):
    def rows(self, tokens, start):
        for block in super().rows(tokens, start):
            yield np.roll(block, 1, axis=0)

class Cooled(LlamaCpp):
    def rows(self, tokens, start):
        for block in super().rows(tokens, start):
            yield block * np.float32(0.9)

class Late(LlamaCpp):
    def generate(self, request, cancelled):
        last = None
        for token in super().generate(request, cancelled):
            yield token._replace(logprob=token.logprob if last is None else last)
            last = token.logprob

class TopK(LlamaCpp):
    filters = {"top_k": 40}
    def generate(self, request, cancelled):
        return super().generate(replace(request, **({} if request.top_k else self.filters)), cancelled)

class TopP(TopK):
    filters = {"top_p": 0.95}

class MinP(TopK):
    filters = {"min_p": 0.05}

class Warm(TopK):
    def generate(self, request, cancelled):
        return LlamaCpp.generate(self, replace(request, temperature=request.temperature * 0.8), cancelled)

class Silent(LlamaCpp):
    def generate(self, request, cancelled):
        return (token for token in super().generate(request, cancelled) if token.id not in self.info.stop_ids)

class Unpenalised(LlamaCpp):
    def generate(self, request, cancelled):
        return super().generate(replace(request, presence_penalty=0.0, frequency_penalty=0.0), cancelled)

class Unrepeated(LlamaCpp):
    def generate(self, request, cancelled):
        return super().generate(replace(request, repetition_penalty=1.0), cancelled)

class Unbiased(LlamaCpp):
    def generate(self, request, cancelled):
        return super().generate(replace(request, logit_bias=()), cancelled)
"""


@pytest.mark.backend("llama_cpp")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Shifted", "logits is .* nats off"),
        ("Cooled", "logits is .* nats off"),
        ("Late", "greedy logprob is .* nats off"),
        ("TopK", "no sample lies outside top-k 40"),
        ("TopP", "no sample lies outside top-p 0.95"),
        ("MinP", "no sample lies outside|standard deviations off"),
        ("Warm", "standard deviations off"),
        ("Silent", "an answer that is <.return.> only"),
        ("Unpenalised", "with presence_penalty .*, token .* below the best"),
        ("Unrepeated", "with repetition_penalty .*, token .* below the best"),
        ("Unbiased", "a bias of 100"),
    ],
)
def test_the_self_test_sees_a_wrong_adapter(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong_engines.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    with pytest.raises(CheckFailed, match=line):
        selftest.run(f"wrong_engines:{name}")
