"""The shape of requests to /v1/messages; `gptoss_harmony` reads the messages, tools and thinking settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from gptoss_adapters.serve.arguments import Note, Reading, note_effort
from gptoss_adapters.serve.bodies import Objects, StopString
from gptoss_adapters.serve.errors import Json, explain_validation
from gptoss_adapters.serve.settings import MAX_STOPS

_TEXT_BLOCK = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": {
            "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {"type": "object"}}]
        },
    },
}
_DROPPED = frozenset(
    {"cache_control", "diagnostics", "inference_geo", "metadata", "service_tier", "speed", "user_profile_id"}
)
"""Arguments that can change no answer."""


class CountTokensBody(BaseModel):
    """What both requests share."""

    model_config = ConfigDict(extra="ignore", strict=True, title="MessagesCountTokensRequest")

    model: str | None = None
    messages: Annotated[Objects, Field(min_length=1), WithJsonSchema({"type": "array", "minItems": 1, "items": _TURN})]
    system: str | Annotated[list[dict[str, Any]], WithJsonSchema({"type": "array", "items": _TEXT_BLOCK})] | None = None
    tools: Objects | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None


class MessagesBody(CountTokensBody):
    model_config = ConfigDict(title="MessagesRequest")

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None

    @property
    def limit(self) -> int:
        return self.max_tokens


def read_body(kind: type[CountTokensBody], raw: Json, strict: bool) -> Reading[Any]:
    """The request that `raw` is. Raises ApiError for what is wrong or, if `strict`, for an unknown argument."""
    known = {key: value for key, value in raw.items() if key in kind.model_fields}
    try:
        body: Any = kind.model_validate(known)
    except ValidationError as error:
        raise explain_validation(error) from None
    reading: Reading[Any] = Reading(body, known, [], strict)
    unknown = (key for key in raw if key not in kind.model_fields and key not in _DROPPED)
    reading.note(*(Note(key[:200], "unknown argument, ignored", "unknown_parameter") for key in unknown))
    reading.note(*note_effort((known.get("output_config") or {}).get("effort"), "output_config.effort"))
    return reading
