"""Does an adapter report what its engine computes? A model whose distributions are known (`known_model`), and the
questions to ask it.

A shift by one position, a default filter left on, probabilities after the temperature or of the wrong token, a penalty
that counts other tokens: each gives another answer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_adapters.backends.client import Backend, open_backend
from gptoss_adapters.backends.known_model import (
    MERGED,
    RETURN,
    STOPPER,
    KnownModel,
    make_known_model,
    write_gguf,
    write_hf,
)
from gptoss_adapters.errors import CheckFailed
from gptoss_adapters.reference.sampling import log_softmax

TOLERANCE = 0.05  # nats: more than bf16 arithmetic can make, far less than any wrong answer


def run(backend: Backend | str) -> dict[str, float]:
    """Open an engine on the known model and ask everything it can do; returns the largest errors in nats and the
    sampling statistic.

    backend: its name, or an open one whose engine, interpreter, time limit and options are used. Raises CheckFailed
    naming the first wrong answer, and what `open_backend` raises.
    """
    name, options = (backend, {}) if isinstance(backend, str) else (backend.name, _options_of(backend))
    truth = make_known_model()
    with tempfile.TemporaryDirectory(prefix="gptoss-selftest-") as folder:
        models = {"hf": write_hf(Path(folder), truth), "gguf": write_gguf(Path(folder), truth)}
        with open_backend(name, models, **options) as subject:
            return _Examiner(subject, truth).examine()


def _options_of(backend: Backend) -> dict[str, Any]:
    return {"python": backend.python, "timeout": backend.timeout, **backend.options}


class _Examiner:
    def __init__(self, backend: Backend, truth: KnownModel) -> None:
        self.backend, self.truth = backend, truth
        ordinary = np.setdiff1d(np.arange(256), [STOPPER])  # bytes above 127 too: parts of UTF-8 characters
        self.prompt = [int(t) for t in np.random.RandomState(1).choice(ordinary, 40)]
        self.found: dict[str, float] = {}

    def examine(self) -> dict[str, float]:
        if self.backend.info.capabilities.output == "full":
            self.logits()
        self.top_logprobs()
        self.prompt_logprobs()
        self.greedy()
        self.stop()
        self.sampling()
        if self.backend.info.capabilities.grammar:
            self.grammar()
        if self.backend.info.capabilities.penalties != "none":
            self.penalties()
        if self.backend.info.capabilities.logit_bias:
            self.bias()
        return self.found

    def near(self, what: str, got: np.ndarray, expected: np.ndarray) -> None:
        error = self.found[what] = float(np.abs(got - expected).max())
        self.need(error <= TOLERANCE, f"{what} is {error:.3g} nats off")

    def need(self, good: bool, what: str) -> None:
        if not good:
            raise CheckFailed(f"backend {self.backend.name} fails its self-test: {what}")

    def logits(self) -> None:
        expected = log_softmax(self.truth.logits(self.prompt))
        self.near("logits", log_softmax(self.backend.logits(self.prompt)), expected)
        self.near("logits from 30", log_softmax(self.backend.logits(self.prompt, start=30)), expected[30:])

    def top_logprobs(self) -> None:
        ids, logprobs = self.backend.top_logprobs(self.prompt, 8, start=4)
        expected = log_softmax(self.truth.logits(self.prompt))[4:]
        self.near("top_logprobs", logprobs, np.take_along_axis(expected, ids.astype(np.int64), axis=1))
        self.near("top_logprobs best", logprobs[:, 0], expected.max(axis=1))

    def prompt_logprobs(self) -> None:
        found = self.backend.prompt_logprobs(self.prompt, 3)
        expected = log_softmax(self.truth.logits(self.prompt))[:-1]
        self.near("prompt_logprobs", found.own, expected[range(len(expected)), self.prompt[1:]])
        self.near("prompt_logprobs best", found.best, np.sort(expected, axis=1)[:, :-4:-1])

    def greedy(self) -> None:
        got = self.backend.generate(self.prompt, max_tokens=24, logprobs=3)
        self.need(got.reason == "length" and len(got.ids) == 24, f"24 greedy tokens gave {len(got.ids)}, {got.reason}")
        before = [self.prompt[-1], *got.ids[:-1]]
        expected = log_softmax(self.truth.logits(before))
        self.near("greedy choice", expected[range(24), got.ids], expected.max(axis=1))
        self.near("greedy logprob", np.array([t.logprob for t in got.tokens]), expected[range(24), got.ids])
        alternatives = np.array([[p for _, p in t.top] for t in got.tokens])
        self.near("greedy alternatives", alternatives, np.sort(expected, axis=1)[:, :-4:-1])

    def stop(self) -> None:
        got = self.backend.generate([*self.prompt, STOPPER], max_tokens=8)
        self.need(
            (got.ids, got.reason) == ([RETURN], "stop"),
            f"an answer that is <|return|> only came as {got.ids}, {got.reason}",
        )

    def sampling(self, steps: int = 300, temperature: float = 1.0) -> None:
        """The surprise of a sampled chain, less its entropy, has mean 0 and a known variance; and the improbable tokens
        that engines' default filters (top-k 40, top-p 0.95, min-p 0.05) cut off do occur.
        """
        got = self.backend.generate(self.prompt, max_tokens=steps, temperature=temperature, seed=5).ids
        logq = log_softmax(self.truth.logits([self.prompt[-1], *got[:-1]]) / temperature)
        q = np.exp(logq)
        drawn = q[range(len(got)), got]
        entropy = -(q * logq).sum(axis=1)
        variance = (q * logq**2).sum(axis=1) - entropy**2
        z = self.found["sampling z"] = float((-np.log(drawn) - entropy).sum() / np.sqrt(variance.sum()))
        before = np.where(q > drawn[:, None], q, 0)  # what is more probable than the drawn one
        tails = {  # with room for ties and rounding at the edge
            "top-k 40": (before > 0).sum(axis=1) >= 45,
            "top-p 0.95": before.sum(axis=1) >= 0.955,
            "min-p 0.05": drawn < 0.048 * q.max(axis=1),
        }
        for name, tail in tails.items():
            self.need(bool(tail.any()), f"no sample lies outside {name}: a filter is on that nobody asked for")
        self.need(abs(z) < 5, f"samples at temperature {temperature} are {z:.1f} standard deviations off")
        one = self.backend.generate(self.prompt, max_tokens=8, temperature=1.0, top_k=1, seed=9).ids
        self.need(one == self.backend.generate(self.prompt, max_tokens=8).ids, "top_k=1 is not greedy")

    def grammar(self) -> None:
        got = self.backend.generate(self.prompt, max_tokens=8, grammar='root ::= "X" [0-9] "Y"').ids
        text = bytes(t for t in got if t < MERGED)
        self.need(text[:1] == b"X" and text[1:2].isdigit() and text[2:] == b"Y", f"a grammar gave {text!r}")

    def penalties(self) -> None:
        """Greedy answers to penalties, each step beside what the definitions make of the known logits."""
        rewarded = {"presence_penalty": -2.0}  # below 0, as greedy answers of this model repeat nothing by themselves
        mixed = {"presence_penalty": -2.0, "frequency_penalty": 0.7}
        for asked in (rewarded, mixed, {"repetition_penalty": 1.6}, {"repetition_penalty": 0.8}):
            got = self.backend.generate(self.prompt, max_tokens=24, **asked).ids
            for n, chosen in enumerate(got):
                expected = self.penalise([*self.prompt, *got[:n]], **asked)
                missed = float(expected.max() - expected[chosen])
                words = ", ".join(f"{name} {value}" for name, value in asked.items())
                self.need(missed <= TOLERANCE, f"with {words}, token {n} is {missed:.3g} below the best")

    def penalise(
        self,
        tokens: Sequence[int],
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> np.ndarray:
        """The known logits after `tokens`, prompt and answer, one by one."""
        logits: np.ndarray = self.truth.logits([tokens[-1]])[0]
        answer = list(tokens[len(self.prompt) :])
        for ident in set(tokens):
            logits[ident] *= 1 / repetition_penalty if logits[ident] > 0 else repetition_penalty
        for ident in set(answer):
            logits[ident] -= presence_penalty + frequency_penalty * answer.count(ident)
        return logits

    def bias(self) -> None:
        first = self.backend.generate(self.prompt, max_tokens=1).ids[0]
        other = (first + 1) % MERGED
        forced = self.backend.generate(self.prompt, max_tokens=3, temperature=1.0, logit_bias=[(other, 100.0)]).ids
        self.need(forced == [other] * 3, f"a bias of 100 for {other} gave {forced}")
        banned = self.backend.generate(self.prompt, max_tokens=24, logit_bias=[(first, -100.0)]).ids
        self.need(first not in banned, f"a bias of -100 for {first} gave {banned}")
