"""Compiles our structural tags beside xgrammar's cache, which mixes them up.

xgrammar 0.2.8 keeps the token masks of a grammar's rules for other grammars to come, and tells rules apart by a hash
that leaves out which token a token rule stands for. Ours match control tokens as tokens. So after one `tool_choice`
"required" every answer held to a JSON schema was allowed nothing but `<|channel|>` where `<|message|>` must stand,
which vLLM ends with a 500; and the other way round a demanded call could never end its reasoning. vLLM's own tags spell
control tokens as text, and keep their cache.
"""

from __future__ import annotations

import copy
import functools
import json
from functools import cache, lru_cache
from threading import Lock
from typing import Any

import xgrammar
from vllm.v1.structured_output import backend_xgrammar
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from gptoss_adapters.vllm_plugin import log

MARK = json.dumps({"type": "token", "token": 0})[:-2]  # how a token rule begins in a tag
KEPT = 8  # compiled tags; each takes some 10 MB and 0.1 s


class Uncached:
    """In the place of a backend's GrammarCompiler: whole tags are kept, single rules are not."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
        self.compile_structural_tag = lru_cache(KEPT)(self._compile)
        self.asked = False

    def _compile(self, *tag: Any) -> Any:
        self.asked = True
        return self._compiler.compile_structural_tag(*tag)


def install() -> None:
    """Put in place of vLLM's own; may be called again."""
    if getattr(backend_xgrammar.XgrammarBackend.compile_grammar, "gptoss_adapters", False):
        return
    builtin = backend_xgrammar.XgrammarBackend.compile_grammar
    lock = Lock()

    @functools.wraps(builtin)
    def compile_grammar(self: Any, request_type: Any, grammar_spec: str, *args: Any, **kwargs: Any) -> Any:
        if request_type is not StructuredOutputOptions.STRUCTURAL_TAG or MARK not in grammar_spec:
            return builtin(self, request_type, grammar_spec, *args, **kwargs)
        with lock:
            if not hasattr(self, "gptoss_uncached"):
                self.gptoss_uncached = _copy_uncached(self)
        found = builtin(self.gptoss_uncached, request_type, grammar_spec, *args, **kwargs)
        if not self.gptoss_uncached.gptoss_compiler.asked:
            _warn_once()
        return found

    compile_grammar.gptoss_adapters = True  # type: ignore[attr-defined]
    backend_xgrammar.XgrammarBackend.compile_grammar = compile_grammar


def _copy_uncached(backend: Any) -> Any:
    """The backend with ours for each of its compilers: 0.33 has one for tags beside the one for all else."""
    copied = copy.copy(backend)
    copied.gptoss_compiler = Uncached(backend.tokenizer, backend.vocab_size)
    for name, value in vars(backend).items():
        if isinstance(value, xgrammar.GrammarCompiler):
            setattr(copied, name, copied.gptoss_compiler)
    return copied


@cache
def _warn_once() -> None:
    log.warning(
        "gptoss-adapters: this vLLM compiles structural tags in a way of its own: demanded calls and answers by schema "
        "on one server may get each other's masks; ask for one kind only, or set GPTOSS_ADAPTERS_VLLM=off"
    )
