"""The engines that the grammar tests drive: llama.cpp's grammar sampler and xgrammar's matcher."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xgrammar
from gptoss_harmony import load_vocabulary
from gptoss_harmony.grammars.grammar import Grammar
from gptoss_harmony.tokens import CALL, ENDOFTEXT, GENERATION_STOPS, RETURN, SPECIAL_TOKENS

from helpers import real_vocabulary_gguf

Accepts = Callable[[list[int]], bool]


@cache
def compiler() -> xgrammar.GrammarCompiler:
    pieces = real_vocabulary_gguf.pieces()
    info = xgrammar.TokenizerInfo(
        pieces, xgrammar.VocabType.RAW, vocab_size=len(pieces), stop_token_ids=[RETURN, CALL, ENDOFTEXT]
    )
    return xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)  # see structural_tag


def by_xgrammar(compiled: Any) -> Accepts:
    def accepts(ids: list[int]) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled)
        return all(matcher.accept_token(token) for token in ids) and matcher.is_terminated()

    return accepts


class Llama:
    """llama.cpp through its C API: one grammar sampler at a time over the model's logits."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.api = llama_cpp
        self.model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model.model)

    def sampler(self, grammar: Grammar) -> Any:
        sampler = self.api.llama_sampler_init_grammar(self.vocabulary, grammar.text.encode(), b"root")
        assert sampler, "llama.cpp does not compile the grammar"
        return sampler

    def allowed(self, sampler: Any, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """The logits, minus infinity where the grammar forbids the token."""
        kind = self.api.llama_token_data
        rows = np.zeros(len(tokens), dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        rows["id"], rows["logit"] = tokens, logits
        array = self.api.llama_token_data_array(rows.ctypes.data_as(ctypes.POINTER(kind)), len(rows), -1, False)
        self.api.llama_sampler_apply(sampler, ctypes.byref(array))
        return rows["logit"].copy()

    def accepts(self, grammar: Grammar) -> Accepts:
        def accepts(ids: list[int]) -> bool:
            sampler = self.sampler(grammar)
            try:
                for token in ids:
                    if np.isneginf(self.allowed(sampler, np.array([token]), np.zeros(1))[0]):
                        return False
                    if token in GENERATION_STOPS:
                        return token == ids[-1]
                    self.api.llama_sampler_accept(sampler, token)
                return False
            finally:
                self.api.llama_sampler_free(sampler)

        return accepts

    def decode(self, grammar: Grammar, prompt: list[int], rng: np.random.Generator, limit: int = 400) -> list[int]:
        """Samples at temperature 1 under the grammar, from 4096 random tokens and those of `always_offered` at each
        step.

        The cut only saves time: a grammar over 200 000 candidates costs 0.1 s per token.
        """
        sampler, out = self.sampler(grammar), []
        self.model.reset()
        self.model.eval(prompt)
        try:
            while len(out) < limit:
                logits = np.ctypeslib.as_array(
                    self.api.llama_get_logits_ith(self.model.ctx, -1), shape=(self.model.n_vocab(),)
                )
                tokens = np.union1d(rng.choice(len(logits), 4096, replace=False), always_offered())
                left = self.allowed(sampler, tokens, logits[tokens])
                weights = np.exp(left - left.max())
                out.append(int(rng.choice(tokens, p=weights / weights.sum())))
                if out[-1] in GENERATION_STOPS:
                    return out
                self.api.llama_sampler_accept(sampler, out[-1])
                self.model.eval(out[-1:])
        finally:
            self.api.llama_sampler_free(sampler)
        raise AssertionError(f"no end within {limit} tokens: {load_vocabulary().decode(out)!r}")


@cache
def always_offered() -> np.ndarray:
    """ASCII and control tokens, which spell everything that a grammar asks for, and what can end a UTF-8 sequence.

    Bytes that begin one are left to chance: llama.cpp's grammars count an overlong sequence as one character.
    """
    single = [i for i, piece in enumerate(real_vocabulary_gguf.pieces()) if len(piece) == 1 and piece < b"\xc0"]
    return np.array(
        [
            *single,
            *(
                SPECIAL_TOKENS[f"<|{name}|>"]
                for name in ("start", "channel", "message", "end", "call", "return", "constrain")
            ),
        ]
    )
