"""The common protocol of all backends: what an engine can do, what it is asked, what it gives back.

An *engine* is a class that runs in a child process (`worker.py`); a *backend* (`client.py`) is the parent's handle on
one. Token ids go in and come out, never text: llama.cpp, for one, turns control-token text into control ids even when
told not to.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from gptoss_adapters.backends.scoring import PromptLogprobs, score_blocks
from gptoss_adapters.errors import GptOssError, NotComparable, UsageError

ENGINES = {
    "llama_cpp": "gptoss_adapters.backends.llama_cpp:LlamaCpp",
    "llama_server": "gptoss_adapters.backends.llama_server:LlamaServer",
    "ollama": "gptoss_adapters.backends.ollama:Ollama",
    "torch": "gptoss_adapters.backends.torch:Torch",
    "transformers": "gptoss_adapters.backends.transformers:Transformers",
    "vllm": "gptoss_adapters.backends.vllm:Vllm",
}


_SPEC = re.compile(r"(?P<name>[\w.:]+)(?:@(?P<python>[^=]+))?(?:=(?P<path>.+))?")
Arithmetic = Literal["ggml", "torch"]


class BackendFailed(GptOssError):
    """An engine died, hung, returned NaN or refused to work; the text names the backend and what happened."""

    exit_code = 3  # nothing was computed, so nothing can be compared


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can be asked for.

    output: "full" = logits over the whole vocabulary at every position; "top_k" = the k best log-probabilities at every
        position; "text" = generated text only.
    grammar: generation can be held to a GBNF grammar.
    headers: it can be held to the headers of a Request.
    taps: hidden states and router scores can be read and the chosen experts forced.
    penalties: the presence, frequency and repetition penalties of a Request; "free" = not while a grammar holds it.
    logit_bias: that of a Request.
    most: how many log-probabilities "top_k" can give for a position; 0: as many as there are.
    as_text: prompts go to the engine as text, so that not all ids can be asked for (`readable_length`).
    """

    output: Literal["full", "top_k", "text"]
    grammar: bool = False
    headers: bool = False
    taps: bool = False
    penalties: Literal["none", "free", "always"] = "none"
    logit_bias: bool = False
    most: int = 0
    as_text: bool = False

    @property
    def scores_prompts(self) -> bool:
        """Can it say how probable a prompt's own tokens are?"""
        return self.output != "text" and not self.as_text


@dataclass(frozen=True, slots=True)
class Info:
    """Who computes: engine and version, the model's vocabulary rows, the context in tokens, the ids that end an answer,
    and the settings that the numbers depend on (threads, cache type, ...). arithmetic and opens are the engine class's;
    the worker fills them in."""

    engine: str
    version: str
    vocab_size: int
    n_ctx: int
    stop_ids: tuple[int, ...]
    capabilities: Capabilities
    settings: dict[str, Any] = field(default_factory=dict)
    arithmetic: Arithmetic = "torch"
    opens: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Info:
        tuples = {name: tuple(raw[name]) for name in ("stop_ids", "opens")}
        return cls(**{**raw, **tuples, "capabilities": Capabilities(**raw["capabilities"])})


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; the filters see probabilities
    after the temperature, in the order top-k, top-p, min-p. stop_ids None: the engine's own (`Info.stop_ids`).
    logprobs: None, or how many of the best alternatives to report with each token (0: the token's own only).
    logit_bias: (id, what is added to its logit) pairs. Then the penalties, as vLLM defines them: repetition_penalty
    divides the positive logits of every token of prompt and answer, and multiplies the negative ones (1: off);
    presence_penalty is taken once, and frequency_penalty per occurrence, from those of the answer's tokens (0: off).
    headers: what may stand between <|start|>assistant, with which the prompt ends, and a text of a Harmony answer,
    control tokens by their names (`gptoss_harmony.grammars.headers`); empty: anything.
    reuse: an engine may go on from what an earlier generation left in its cache; numbers then differ by rounding."""

    tokens: Sequence[int]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop_ids: Sequence[int] | None = None
    grammar: str | None = None
    logprobs: int | None = None
    reuse: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Sequence[tuple[int, float]] = ()
    headers: Sequence[str] = ()

    @property
    def penalised(self) -> bool:
        """Is there a penalty?"""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def check(self, info: Info) -> None:
        """Raises UsageError naming the argument that is out of its range for this engine; the tokens are not looked
        at.
        """
        ranges = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": 0 <= self.temperature < float("inf"),
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p <= 1,
            "seed": 0 <= self.seed < 2**32,
            "logprobs": self.logprobs is None or 0 <= self.logprobs <= info.vocab_size,
            "presence_penalty": isfinite(self.presence_penalty),
            "frequency_penalty": isfinite(self.frequency_penalty),
            "repetition_penalty": 0 < self.repetition_penalty < float("inf"),
            "logit_bias": all(0 <= ident < info.vocab_size and isfinite(bias) for ident, bias in self.logit_bias),
        }
        for name, good in ranges.items():
            if not good:
                raise UsageError(f"argument {name} is out of range", got=getattr(self, name))
        if self.grammar is not None and not info.capabilities.grammar:
            raise UsageError(f"{info.engine} takes no grammar")
        if self.headers and not info.capabilities.headers:
            raise UsageError(f"{info.engine} holds no headers")
        if self.logit_bias and not info.capabilities.logit_bias:
            raise UsageError(f"{info.engine} takes no logit_bias")
        known = info.capabilities.penalties
        if self.penalised and (known == "none" or (known == "free" and self.grammar is not None)):
            raise UsageError(f"{info.engine} takes no penalties{'' if known == 'none' else ' beside a grammar'}")


def check_count(k: int, most: int) -> None:
    """Raises UsageError for a number of alternatives that an engine does not give."""
    if not 1 <= k <= most:
        raise UsageError("argument k is out of range", expected=f"1..{most}", got=k)


def check_tokens(tokens: Sequence[int], info: Info) -> None:
    """Raises UsageError for an empty prompt, an id outside the vocabulary, or more tokens than the context holds."""
    if not len(tokens):
        raise UsageError("the prompt has no tokens")
    if len(tokens) > info.n_ctx:
        raise UsageError(
            "the prompt is longer than the context",
            expected=f"<= {info.n_ctx}",
            got=len(tokens),
            hint="open the backend with a larger n_ctx",
        )
    ids = np.asarray(tokens)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise UsageError("a prompt is a flat list of token ids", got=f"{ids.dtype} of shape {ids.shape}")
    if int(ids.min()) < 0 or int(ids.max()) >= info.vocab_size:
        raise UsageError("token id outside the vocabulary", expected=f"0..{info.vocab_size - 1}", got=int(ids.max()))


class Token(NamedTuple):
    """One generated token. logprob: natural log of its probability under the raw logits (before temperature, filters
    and grammar); top: the best alternatives [(id, logprob), ...], best first. Both None/empty when not asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


StopReason = Literal["stop", "length", "cancelled", "engine"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation: its tokens, and why it ended. reason: "stop" = the last token is a stop id (it is
    included); "length" = max_tokens reached; "cancelled"; "engine" = the engine ended by its own rule (context full,
    grammar complete).
    """

    tokens: tuple[Token, ...]
    reason: StopReason

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


class Engine(ABC):
    """What a backend implements, in the child. The constructor sets `info`; a generation that took prompt tokens from
    the cache (`Request.reuse`) says in `reused` how many.

    arithmetic: how it rounds, which decides what noise it is judged by. "torch": everything in the dtype that
        `settings["dtype"]` names (float32 without one); "ggml": activations rounded to suit the stored weights, keys
        and values as `settings` says under "cache_type", "flash_attn" and "n_batch".
    opens: the forms of model that it opens from a path: "hf", a folder in Hugging Face's layout, and "gguf", a file.
    """

    arithmetic: ClassVar[Arithmetic] = "torch"
    opens: ClassVar[tuple[str, ...]] = ()
    info: Info
    reused: int = 0

    @abstractmethod
    def __init__(self, path: str | None, **options: Any) -> None: ...

    def rows(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        """Logits of the positions start..T-1 as successive float32 blocks [n, V]; a block lives until the next."""
        raise NotComparable(f"{self.info.engine} gives no logits")

    def top_logprobs(self, tokens: Sequence[int], k: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [T-start, k] and log-probabilities float32 [T-start, k] of the k most probable next tokens."""
        from gptoss_adapters.reference.sampling import top_logprobs

        pairs = [top_logprobs(block, k) for block in self.rows(tokens, start)]
        return np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])

    def prompt_logprobs(self, tokens: Sequence[int], k: int, cancelled: Callable[[], bool]) -> PromptLogprobs:
        """Of two tokens or more, with the k most probable ones at each position; may end early when cancelled."""
        return score_blocks(self.rows(tokens, 0), tokens, k, cancelled)

    def taps(self, tokens: Sequence[int], forced: np.ndarray | None) -> dict[str, np.ndarray]:
        """See `Backend.taps`."""
        raise NotComparable(f"{self.info.engine} has no taps")

    def tokenize(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Each text's ids by the engine's own vocabulary, nothing added around it; special: control-token names are
        read as such.
        """
        raise NotComparable(f"{self.info.engine} does not tokenize")

    def chat_prompt(self, request: Mapping[str, Any]) -> str:
        """The prompt text that the engine's own chat template makes of a Chat Completions request."""
        raise NotComparable(f"{self.info.engine} has no chat template")

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A Chat Completions answer that the engine rendered and parsed by itself: the "message", "finish_reason"
        and "usage".
        """
        raise NotComparable(f"{self.info.engine} does not chat")

    @abstractmethod
    def generate(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Token]:
        """Tokens without end; the worker stops at a stop id, at max_tokens, or when cancelled. Returning early is
        allowed (reason "engine"). Long prefills poll `cancelled`.
        """


def as_ids(eos: int | Sequence[int] | None) -> tuple[int, ...]:
    """The ids of a generation config's eos_token_id: none, one or several."""
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    a, b = np.asarray(first[: len(second)], np.int64), np.asarray(second[: len(first)], np.int64)
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if len(differ) else len(a)


def read_spec(spec: str) -> tuple[str, str | None, str | None]:
    """(name, interpreter, path) of a backend's spec. Raises UsageError."""
    match = _SPEC.fullmatch(spec)
    if not match:
        raise UsageError("bad backend spec", expected="name, name=PATH or name@PYTHON", got=spec)
    return match["name"], match["python"], match["path"]


def engine_class(name: str) -> type[Engine]:
    """The engine class of a backend name, or of "module:Class". Raises UsageError."""
    target = ENGINES.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UsageError(f"unknown backend {name}", expected=", ".join(ENGINES))
    found: type[Engine] = getattr(importlib.import_module(module), attribute)
    return found
