"""llama.cpp's own server: in process through xllamacpp (prebuilt wheels), a binary, or one that runs somewhere, over
HTTP.

One request per generated token. The server's stream, and the probabilities of its longer answers, lose every token
whose text ends inside a UTF-8 character; the ids of a one-token answer are always whole. The prompt stays in the
server's cache, so a step costs one decode. Only a grammar, whose state lives as long as a request, is generated in one
piece.

The defaults are the parity settings: F32 cache, no flash attention, one thread.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gptoss_harmony.tokens import FIRST_SPECIAL, GENERATION_STOPS, SPECIAL_NAMES

from gptoss_adapters.backends.llama_http import connect, start_binary, start_in_process
from gptoss_adapters.backends.protocol import BackendFailed, Capabilities, Engine, Info, Request, Token
from gptoss_adapters.backends.scoring import PromptLogprobs
from gptoss_adapters.errors import BadInput, UsageError

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")
_PRINTABLE = range(256)  # a byte-level vocabulary has the printable ASCII characters among its first ids
_CONTROL = re.compile(r"<\|[a-z_0-9]+\|>")
_TEXTS = 500  # in one /tokenize request
_FORCE = 1e9  # logit bias that makes a token certain; reported probabilities do not see it


class LlamaServer(Engine):
    """`llama_server=FILE.gguf`, or `llama_server=URL` of one that runs: its settings are then its own.

    Options: n_ctx, n_batch, n_threads, cache_type, flash_attn, as for llama_cpp; binary: a llama-server to start, a
    path or a name on PATH, instead of xllamacpp's; api_key: of the server at a URL.
    """

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
        binary: str | None = None,
        api_key: str | None = None,
    ) -> None:
        if path is None:
            raise UsageError("llama_server needs a GGUF file or a URL", expected="llama_server=FILE.gguf")
        if cache_type not in CACHE_TYPES:
            raise UsageError("argument cache_type", expected=", ".join(CACHE_TYPES), got=cache_type)
        settings = {"n_batch": n_batch, "n_threads": n_threads, "cache_type": cache_type, "flash_attn": flash_attn}
        if "://" in path:
            settings = {"url": path}
            self._served = connect(path, api_key)
        else:
            _need_vocabulary(Path(path))
            self._served = (
                start_binary(binary, path, n_ctx, settings) if binary else start_in_process(path, n_ctx, settings)
            )
        self._http = self._served.client
        meta = self._http.get("/v1/models")["data"][0]["meta"]
        slots = self._http.get("/props")["default_generation_settings"]
        self.info = Info(
            engine="llama_server",
            version=self._served.version,
            vocab_size=meta["n_vocab"],
            n_ctx=slots["n_ctx"],
            stop_ids=self._stop_ids(),
            capabilities=Capabilities("top_k", grammar=True, penalties="free", logit_bias=True),
            settings=settings,
        )
        self._printable = self._find_printable()

    def top_logprobs(self, tokens: Sequence[int], k: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty((len(tokens) - start, k), np.int32)
        logprobs = np.empty((len(tokens) - start, k), np.float32)
        for row, end in enumerate(range(start + 1, len(tokens) + 1)):
            best = self._probabilities(tokens[:end], k)
            if len(best) != k:
                raise BackendFailed("gave too few probabilities", expected=k, got=len(best))
            ids[row], logprobs[row] = [i for i, _ in best], [p for _, p in best]
        return ids, logprobs

    def prompt_logprobs(self, tokens: Sequence[int], k: int, cancelled: Callable[[], bool]) -> PromptLogprobs:
        own = []
        ranks = []
        best = []
        for end in range(1, len(tokens)):
            if cancelled():
                break
            logprob, found = self._score(tokens[:end], tokens[end], k)
            own.append(logprob)
            ranks.append(next((i for i, (ident, _) in enumerate(found, 1) if ident == tokens[end]), 0))
            best.append(found[:k])
        pairs = np.array(best, np.float64).reshape(len(best), k, 2)
        return PromptLogprobs(
            np.array(own, np.float32),
            np.array(ranks, np.int32),
            pairs[..., 0].astype(np.int32),
            pairs[..., 1].astype(np.float32),
        )

    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        if request.grammar is not None:
            yield from self._whole(request)
            return
        tokens = list(request.tokens)
        for step in range(self.info.n_ctx - len(tokens)):
            if cancelled():
                return
            bias = _penalise(request, tokens[len(request.tokens) :])
            answer = self._complete(tokens, request, bias, n_predict=1, seed=(request.seed + step) % 2**32)
            if step == 0:
                self.reused = _cached(answer)
            for ident in answer["tokens"]:
                yield self._token(tokens, ident, request.logprobs, answer.get("completion_probabilities", []))
                tokens.append(ident)
            if answer["stop_type"] == "eos":
                return

    def tokenize(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Many texts in one request: the server reads a mixed list of texts and ids, so an id that none of them has
        parts them.
        """
        names = {name for text in texts for name in _CONTROL.findall(text)}
        between = next(
            FIRST_SPECIAL + i
            for i, name in reversed(list(enumerate(SPECIAL_NAMES[: self.info.vocab_size - FIRST_SPECIAL])))
            if name not in names
        )

        def ids(part: Sequence[str]) -> list[list[int]]:
            mixed = [piece for text in part for piece in (text, between)]
            asked = {"content": mixed, "add_special": False, "parse_special": special}
            return list(_parted(self._http.post("/tokenize", asked)["tokens"], between))

        with ThreadPoolExecutor() as pool:
            parts = pool.map(ids, [texts[at : at + _TEXTS] for at in range(0, len(texts), _TEXTS)])
            return [one for part in parts for one in part]

    def chat_prompt(self, request: Mapping[str, Any]) -> str:
        return str(self._http.chat_prompt(request)["prompt"])

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._http.chat(request)
        choice = answer["choices"][0]
        return {"message": choice["message"], "finish_reason": choice["finish_reason"], "usage": answer["usage"]}

    def _whole(self, request: Request) -> Iterator[Token]:
        bias = request.logit_bias
        answer = self._complete(request.tokens, request, bias, n_predict=request.max_tokens, seed=request.seed)
        self.reused, tokens = _cached(answer), list(request.tokens)
        for ident in answer["tokens"]:
            yield self._token(tokens, ident, request.logprobs, [])
            tokens.append(ident)

    def _complete(
        self, tokens: Sequence[int], request: Request, bias: Sequence[tuple[int, float]], n_predict: int, seed: int
    ) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "n_predict": n_predict,
            "seed": seed,
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "n_probs": 0 if request.logprobs is None or request.grammar else max(request.logprobs, 1),
        }
        if bias:
            settings["logit_bias"] = list(bias)
        if request.repetition_penalty != 1:
            settings["samplers"].insert(0, "penalties")
            settings |= {"repeat_penalty": request.repetition_penalty, "repeat_last_n": self.info.n_ctx}
        return self._http.complete(tokens, **settings, **({"grammar": request.grammar} if request.grammar else {}))

    def _token(self, before: Sequence[int], ident: int, logprobs: int | None, reported: list[dict[str, Any]]) -> Token:
        """`reported`: the answer's own probabilities; empty where the server has none, or none that can be trusted."""
        if logprobs is None:
            return Token(ident)
        if reported:
            return Token(ident, reported[0]["logprob"], tuple(_pairs(reported[0])[:logprobs]))
        best = self._search(before, ident, logprobs)
        return Token(ident, dict(best)[ident], tuple(best[:logprobs]))

    def _score(self, before: Sequence[int], ident: int, k: int) -> tuple[float, list[tuple[int, float]]]:
        """The log-probability of `ident` after `before`, and the k best at least. The server answers with `ident`
        because it is forced to, and says how probable it was.
        """
        answer = self._http.complete(before, n_predict=1, temperature=0, n_probs=k, logit_bias=[[ident, _FORCE]])
        reported = answer.get("completion_probabilities", [])
        if reported and reported[0]["id"] == ident:
            return reported[0]["logprob"], _pairs(reported[0])
        best = self._search(before, ident, k)
        return dict(best)[ident], best

    def _search(self, before: Sequence[int], ident: int, k: int) -> list[tuple[int, float]]:
        """The best (id, logprob) after `before`: k at least, and as many as it takes to find `ident`."""
        k = max(k, 64)
        while ident not in dict(best := self._probabilities(before, k)):
            k = min(16 * k, self.info.vocab_size)
        return best

    def _probabilities(self, tokens: Sequence[int], k: int) -> list[tuple[int, float]]:
        """The k best (id, logprob) after `tokens`. The answered token is forced to a printable one: for a token that
        ends inside a UTF-8 character the server gives no probabilities at all.
        """
        answer = self._http.complete(
            tokens, n_predict=1, temperature=0, n_probs=k, logit_bias=[[self._printable, _FORCE]]
        )
        return _pairs(answer["completion_probabilities"][0])

    def _stop_ids(self) -> tuple[int, ...]:
        """llama.cpp ends a generation at the tokens with these texts; in a vocabulary without them, at its eos."""
        found = [
            self._http.post("/tokenize", {"content": SPECIAL_NAMES[t - FIRST_SPECIAL], "parse_special": True})["tokens"]
            for t in sorted(GENERATION_STOPS)
        ]
        return tuple(ids[0] for ids in found if len(ids) == 1)

    def _find_printable(self) -> int:
        for ident in _PRINTABLE:
            text = self._http.post("/detokenize", {"tokens": [ident]})["content"]
            if text.isascii() and text.isprintable() and text:
                return ident
        raise BackendFailed("the vocabulary has no printable token among its first 256")


def _penalise(request: Request, answer: Sequence[int]) -> Sequence[tuple[int, float]]:
    """The biases of the next token, with the presence and frequency penalties among them: the server's own count the
    prompt too. One that the server also divides (repetition_penalty) is divided after them here, before them elsewhere.
    """
    if not (request.presence_penalty or request.frequency_penalty):
        return request.logit_bias
    bias = dict(request.logit_bias)
    for ident, times in Counter(answer).items():
        bias[ident] = bias.get(ident, 0.0) - (request.presence_penalty + request.frequency_penalty * times)
    return list(bias.items())


def _need_vocabulary(path: Path) -> None:
    """llama.cpp's server aborts on a file without one, with nothing that says why. What else is wrong with a file
    it says itself.
    """
    from gptoss_adapters.checkpoint.formats.gguf import GgufFile

    try:
        known = GgufFile(path).metadata
    except BadInput:
        return
    if "tokenizer.ggml.tokens" not in known:
        raise BadInput(
            "has no vocabulary, which llama.cpp's server needs",
            file=path,
            hint="run it by llama_cpp, or convert it with a tokenizer",
        )


def _parted(ids: Sequence[int], between: int) -> Iterator[list[int]]:
    """The runs of ids before each `between`."""
    part: list[int] = []
    for ident in ids:
        if ident == between:
            yield part
            part = []
        else:
            part.append(ident)


def _cached(answer: dict[str, Any]) -> int:
    """Prompt tokens that the server had in its cache; it always looks there."""
    return int(answer.get("timings", {}).get("cache_n", 0))


def _pairs(entry: dict[str, Any]) -> list[tuple[int, float]]:
    return [(best["id"], best["logprob"]) for best in entry["top_logprobs"]]
