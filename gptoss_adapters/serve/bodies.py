"""The shape of requests: one declaration that checks them and describes them in the OpenAPI document.

Messages, input items, tools and formats are only listed here: `gptoss_harmony` reads them and says what is wrong with
them. What gpt-oss or this server cannot do stands in `LACKING` with the value that means "not asked for": any other is
named in the answer's warnings, or refused with `--strict-arguments`, as an unknown argument is (`arguments`). Arguments
that cannot change an answer are accepted and dropped.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from gptoss_adapters.serve.settings import MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TOP_LOGPROBS

Ignored: TypeAlias = Any
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None
Factor: TypeAlias = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None
Count: TypeAlias = Annotated[int, Field(ge=1, le=128)] | None
StopString: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Objects: TypeAlias = list[dict[str, Any]]
_PARTS = [
    {"type": "string"},
    *({"type": "object", "required": [key], "properties": {key: {"type": "string"}}} for key in ("text", "refusal")),
]
_TEXT = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"anyOf": _PARTS}}]}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": _TEXT},
}
_TOOL_RESULT = {
    "type": "object",
    "required": ["role", "tool_call_id"],
    "properties": {"role": {"const": "tool"}, "tool_call_id": {"type": "string"}, "content": _TEXT},
}
_CALLING = {
    "type": "object",
    "required": ["role", "tool_calls"],
    "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "items": {"type": "object"}}},
}
_ITEM = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["message", "reasoning", "function_call", "function_call_output", "item_reference"]}
    },
}
Messages: TypeAlias = Annotated[
    Objects,
    Field(min_length=1),
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"anyOf": [_MESSAGE, _TOOL_RESULT, _CALLING]}}),
]
Items: TypeAlias = Annotated[Objects, WithJsonSchema({"type": "array", "items": {"anyOf": [_MESSAGE, _ITEM]}})]
Limit: TypeAlias = Annotated[int, Field(ge=1, le=2**31)] | None


_NO_BACKGROUND = "this server runs nothing in the background: the answer comes when it is complete"
LACKING: dict[str, tuple[Any, str]] = {
    "best_of": (1, "this server gives one answer to a request and chooses among none"),
    "ignore_eos": (False, "an answer ends where the model ends it"),
    "min_tokens": (0, "an answer ends where the model ends it"),
    "background": (False, _NO_BACKGROUND),
    "background_options": (None, _NO_BACKGROUND),
    "context_management": (None, "this server compacts no context: shorten the input where it grows too long"),
    "moderation": (None, "this server has no moderation"),
    "web_search_options": (None, "this server searches nothing: offer a tool of your own"),
    "audio": (None, "gpt-oss writes text only"),
    "image": (None, "gpt-oss writes text only"),
    "functions": (None, "functions are read as tools, and a call comes back in tool_calls"),
    "function_call": (None, "it is read as tool_choice, and a call comes back in tool_calls"),
}
"""Arguments that this server does not obey: the value that asks for nothing, and what is said of any other. What
depends on the engine is in `shaping`.
"""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted; deltas are never padded


class SamplingBody(BaseModel):
    """What every request says about the model, sampling and streaming."""

    model_config = ConfigDict(extra="ignore", strict=True, title="Request")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    repetition_penalty: Factor = None
    repeat_penalty: Factor = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class CommonBody(SamplingBody):
    """What both APIs share; top_k, min_p, seed and stop are extensions in the Responses API, top_k and min_p in
    both.
    """

    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: bool | None = None
    moderation: Any = None
    best_of: Count = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    user: str | None = None


class ChatBody(CommonBody):
    model_config = ConfigDict(title="ChatCompletionRequest")

    messages: Messages
    max_completion_tokens: Limit = None
    max_tokens: Limit = None
    logprobs: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None  # {"effort": ...}, as some clients send it
    include_reasoning: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: Any = None
    function_call: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    prediction: Ignored = None
    verbosity: Ignored = None
    web_search_options: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class ResponsesBody(CommonBody):
    model_config = ConfigDict(title="ResponseRequest")

    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Limit = None
    include: list[str] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: Ignored = None  # counts built-in tools, and this server runs none
    background: bool | None = None
    background_options: Any = None
    access_programs: Ignored = None
    context_management: Any = None
    conversation: Any = None  # refused with words of its own, as is `prompt`
    image: Any = None
    prompt: Any = None

    @property
    def limit(self) -> int | None:
        return self.max_output_tokens
