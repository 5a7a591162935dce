"""The shape of requests to /v1/completions, and the prompts in them as ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from gptoss_harmony import Vocabulary
from gptoss_harmony.tokens import ENDOFTEXT, SPECIAL_NAMES, SPECIAL_TOKENS
from pydantic import ConfigDict, Field, ValidationError

from gptoss_adapters.serve.arguments import Note, Reading
from gptoss_adapters.serve.bodies import SamplingBody
from gptoss_adapters.serve.errors import Json, bad_request, explain_validation
from gptoss_adapters.serve.settings import MAX_CHOICES, MAX_TOP_LOGPROBS

MAX_PROMPTS = 256
_USUAL_TOKENS = 16  # OpenAI's default
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL_NAMES)) + ")")
_DROPPED = frozenset({"user", "add_special_tokens", "spaces_between_special_tokens"})
"""Arguments that can change no answer: there is no token that begins every prompt."""
_LIMITS = ("max_tokens", "n_predict", "max_completion_tokens")
_LACKING = {
    "suffix": "gpt-oss fills no gaps: the answer does not lead up to it",
    "best_of": "this server gives every answer that it makes, and chooses among none",
}

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
TopCount = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None


class CompletionBody(SamplingBody):
    """`prompt`: texts or ids; without one, the end-of-text token that parts documents. `parse_special`: names of
    control tokens in a text are those tokens (extension). `prompt_logprobs`: as vLLM has it (extension).
    """

    model_config = ConfigDict(title="CompletionRequest")

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=-1, le=2**31)] | None = None  # -1: as many as the context holds
    echo: bool | None = None
    logprobs: TopCount = None
    prompt_logprobs: TopCount = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    parse_special: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None is no limit, which llama.cpp, Ollama and LM Studio write as -1."""
        given = _USUAL_TOKENS if self.max_tokens is None else self.max_tokens
        return None if given == -1 else given

    @property
    def n_scored(self) -> int | None:
        """How many of the most probable tokens are wanted at each position of the prompt; None: no log-probabilities of
        it are.
        """
        wanted = [self.logprobs if self.echo else None, self.prompt_logprobs]
        return max((k for k in wanted if k is not None), default=None)


def read_completion(raw: Json, strict: bool) -> Reading[Any]:
    """The request that `raw` is. Raises ApiError for what is wrong or, if `strict`, not done as asked."""
    spelled = _respell(raw)
    known = {key: value for key, value in spelled.items() if key in CompletionBody.model_fields}
    try:
        body = CompletionBody.model_validate(known)
    except ValidationError as error:
        raise explain_validation(error) from None
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true", "stream_options")
    if body.limit == 0 and body.n_scored is None and not body.echo:
        raise bad_request("max_tokens: 0 asks for nothing without echo or prompt_logprobs", "max_tokens")
    reading: Reading[Any] = Reading(body, known, [], strict)
    reading.note(*_list_lacking(spelled))
    return reading


def _respell(raw: Json) -> Json:
    """The request with other servers' names for its limit as the API's own, which wins."""
    out = {key: value for key, value in raw.items() if key not in _LIMITS}
    found = next((raw[key] for key in _LIMITS if raw.get(key) is not None), None)
    return out | {"max_tokens": found}


def _list_lacking(raw: Json) -> Iterator[Note]:
    for key, value in raw.items():
        if key in _LACKING:
            if value and not (key == "best_of" and value == (raw.get("n") or 1)):
                yield Note(key, _LACKING[key])
        elif key not in CompletionBody.model_fields and key not in _DROPPED:
            yield Note(key[:200], "unknown argument, ignored", "unknown_parameter")


def read_prompts(body: CompletionBody, vocabulary: Vocabulary) -> list[list[int]]:
    """The ids of each prompt, one or several."""
    prompt: Any = body.prompt or ""
    single = isinstance(prompt, str) or isinstance(prompt[0], int)
    prompts: list[str | list[int]] = [prompt] if single else prompt
    special = body.parse_special is not False
    return [_encode(one, vocabulary, special) if isinstance(one, str) else one for one in prompts]


def _encode(text: str, vocabulary: Vocabulary, special: bool) -> list[int]:
    if not special:
        return vocabulary.encode(text) or [ENDOFTEXT]
    ids: list[int] = []
    for i, part in enumerate(_SPECIAL.split(text)):
        ids += [SPECIAL_TOKENS[part]] if i % 2 else vocabulary.encode(part)
    return ids or [ENDOFTEXT]
