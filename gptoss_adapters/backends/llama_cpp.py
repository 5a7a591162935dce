"""llama.cpp in process, through the C API that llama-cpp-python 0.3.36 binds: logits of every position, and generation.

The bindings' own `Llama` class is not used: it holds n_ctx x V logits in memory, stops on end-of-generation tokens
without telling which, and drops tokens longer than 32 bytes when it makes text. Ids go in and come out.

The defaults are the parity settings: F32 cache, no flash attention, one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np

from gptoss_adapters.backends.protocol import BackendFailed, Capabilities, Engine, Info, Request, Token, common_prefix
from gptoss_adapters.backends.sampling import Sampler
from gptoss_adapters.errors import BadInput, UsageError, missing_extra

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # ggml's numbers


class LlamaCpp(Engine):
    """Options: n_ctx (tokens), n_batch (tokens per step of a prefill), n_threads, cache_type ("f32", "f16", "bf16",
    "q8_0"), flash_attn, swa_full (a full-size cache for sliding layers)."""

    arithmetic = "ggml"
    opens = ("gguf",)

    def __init__(
        self,
        path: str | None,
        n_ctx: int = 4096,
        n_batch: int = 512,
        n_threads: int = 1,
        cache_type: str = "f32",
        flash_attn: bool = False,
        swa_full: bool = True,
    ) -> None:
        if path is None:
            raise UsageError("llama_cpp needs a GGUF file", expected="llama_cpp=FILE.gguf")
        if cache_type not in CACHE_TYPES:
            raise UsageError("argument cache_type", expected=", ".join(CACHE_TYPES), got=cache_type)
        self._lib = _library()
        self._log = _Log(self._lib)
        self._model = self._load(path)
        settings = {
            "n_batch": n_batch,
            "n_threads": n_threads,
            "cache_type": cache_type,
            "flash_attn": flash_attn,
            "swa_full": swa_full,
        }
        self._context = self._make_context(n_ctx, settings, path)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        size = self._lib.llama_vocab_n_tokens(self._vocab)
        self.info = Info(
            engine="llama_cpp",
            version=f"llama-cpp-python {version('llama-cpp-python')}",
            vocab_size=size,
            n_ctx=self._lib.llama_n_ctx(self._context),
            stop_ids=tuple(i for i in range(size) if self._lib.llama_vocab_is_eog(self._vocab, i)),
            capabilities=Capabilities("full", grammar=True, headers=True, penalties="always", logit_bias=True),
            settings=settings,
        )
        self._n_batch = n_batch
        self._batch = self._lib.llama_batch_init(n_batch, 0, 1)
        self._cached: list[int] = []  # tokens whose keys and values are in the cache

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        self._forget()
        for at in range(0, len(tokens), self._n_batch):
            part = tokens[at : at + self._n_batch]
            wanted = range(max(start - at, 0), len(part))
            self._decode(part, wanted)
            if wanted:
                yield self._view(self._lib.llama_get_logits(self._context), len(wanted))

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        self.reused = self._keep(request)
        sampler, grammar = Sampler(request), self._grammar(request.grammar)
        try:
            for at in range(self.reused, len(request.tokens), self._n_batch):
                if cancelled():
                    return
                part = request.tokens[at : at + self._n_batch]
                self._decode(part, range(len(part) - 1, len(part)))
            while True:
                logits = self._view(self._lib.llama_get_logits_ith(self._context, -1), 1)[0]
                chosen = sampler.pick(logits)
                if grammar and not grammar.allows(chosen):
                    chosen = sampler.pick(grammar.mask(logits))
                if grammar:
                    grammar.accept(chosen)
                yield sampler.token(chosen, logits)
                if len(self._cached) >= self.info.n_ctx or (
                    grammar and self._lib.llama_vocab_is_eog(self._vocab, chosen)
                ):
                    return
                self._decode([chosen], range(1))
        finally:
            if grammar:
                grammar.free()

    def tokenize(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        def ids(text: str) -> list[int]:
            data = text.encode()
            room = (self._lib.llama_token * (len(data) + 1))()  # a token has a byte at least
            count = self._lib.llama_tokenize(self._vocab, data, len(data), room, len(room), False, special)
            return list(room[:count])

        with ThreadPoolExecutor() as pool:  # it compiles its splitting rule for each text, 1.6 ms
            return list(pool.map(ids, texts))

    def _load(self, path: str) -> Any:
        params = self._lib.llama_model_default_params()
        model = self._lib.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise BadInput(f"llama.cpp refuses the file: {self._log.cause()}", file=path)
        return model

    def _make_context(self, n_ctx: int, settings: dict[str, Any], path: str) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = settings["n_batch"]
        params.n_ubatch = settings["n_batch"]
        params.n_threads = params.n_threads_batch = settings["n_threads"]
        params.type_k = params.type_v = CACHE_TYPES[settings["cache_type"]]
        params.flash_attn_type = int(settings["flash_attn"])
        params.swa_full = settings["swa_full"]
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise BadInput(f"llama.cpp cannot make a context: {self._log.cause()}", file=path)
        return context

    def _keep(self, request: Request) -> int:
        """Leaves in the cache what it shares with the prompt, but for one token whose logits are wanted; returns
        how much.
        """
        whole = (
            request.reuse and self.info.settings["swa_full"]
        )  # else sliding layers have dropped what a shorter prompt needs
        n = min(common_prefix(self._cached, request.tokens), len(request.tokens) - 1) if whole else 0
        memory = self._lib.llama_get_memory(self._context)
        if n == 0 or not self._lib.llama_memory_seq_rm(memory, 0, n, -1):
            self._forget()
            return 0
        del self._cached[n:]
        return n

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._cached.clear()

    def _decode(self, tokens: Sequence[int], wanted: range) -> None:
        """Append tokens to the cache; logits of the `wanted` ones can be read afterwards."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = len(self._cached) + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i in wanted
        self._log.clear()
        code = self._lib.llama_decode(self._context, batch)
        if code:
            at = len(self._cached)
            self._forget()
            raise BackendFailed(f"llama_decode gave {code} at position {at}: {self._log.cause()}")
        self._cached += tokens

    def _view(self, pointer: Any, rows: int) -> np.ndarray:
        return np.ctypeslib.as_array(pointer, (rows, self.info.vocab_size))

    def _grammar(self, text: str | None) -> _Grammar | None:
        return None if text is None else _Grammar(self._lib, self._vocab, text, self._log)


class _Grammar:
    """A GBNF grammar as a filter on candidates. As in llama.cpp, a token is first drawn freely and the whole vocabulary
    is
    masked only if the grammar refuses it: the result has the masked distribution, at a fraction of the cost."""

    def __init__(self, lib: Any, vocab: Any, text: str, log: _Log) -> None:
        self._lib = lib
        log.clear()
        self._sampler = lib.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not self._sampler:
            raise UsageError(f"llama.cpp cannot parse the grammar: {log.cause()}")

    def allows(self, token: int) -> bool:
        return bool(np.isfinite(self._apply(np.array([token]), np.zeros(1, np.float32)))[0])

    def mask(self, logits: np.ndarray) -> np.ndarray:
        return self._apply(np.arange(len(logits)), logits)

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self._sampler, token)

    def free(self) -> None:
        self._lib.llama_sampler_free(self._sampler)

    def _apply(self, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        data = np.zeros(len(ids), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"], data["logit"] = ids, logits
        pointer = data.ctypes.data_as(self._lib.llama_token_data_p)
        array = self._lib.llama_token_data_array(pointer, len(ids), -1, False)
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return data["logit"]


class _Log:
    """What the engine complained about during the current step; all else is dropped."""

    _ERROR = 4

    def __init__(self, lib: Any) -> None:
        self._lines: list[str] = []
        self._callback = lib.llama_log_callback(self._write)  # ctypes needs it kept alive
        lib.llama_log_set(self._callback, None)

    def _write(self, level: int, text: bytes, _: Any) -> None:
        if level == self._ERROR and text.strip():
            self._lines.append(text.decode(errors="replace").strip())

    def clear(self) -> None:
        self._lines.clear()

    def cause(self) -> str:
        """The first complaint: the later ones only say that the callers failed too."""
        return self._lines[0] if self._lines else "no reason given"


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise missing_extra("llama-cpp-python", "llama-cpp") from error
    llama_cpp.llama_backend_init()
    return llama_cpp.llama_cpp
