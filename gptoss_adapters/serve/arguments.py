"""Arguments as clients send them: other spellings become ours, and what is not done as asked is noted.

What a note says is a warning in the answer; with `--strict-arguments` it refuses the request instead. A wrong type or
range is refused either way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from gptoss_adapters.serve.bodies import LACKING, CommonBody, StreamOptions
from gptoss_adapters.serve.errors import ApiError, Json, bad_request, explain_validation
from gptoss_adapters.serve.spellings import respell

Body = TypeVar("Body", bound=CommonBody)

_MAPPED_EFFORTS = {
    "none": "with low effort and without a chain of thought",
    "minimal": "as low",
    "xhigh": "as high",
    "max": "as high",
    "ultra": "as high",
}
_ABSENT: dict[str, str] = {
    "conversation": "this server has no conversations: send previous_response_id, or the items themselves",
    "prompt": "this server has no stored prompts: send instructions and input",
}
"""What an answer cannot be given without."""
_INSIDE: dict[str, Collection[str]] = {
    "stream_options": StreamOptions.model_fields,
    "reasoning": ("effort", "summary", "generate_summary"),
    "text": ("format", "verbosity"),
}
"""Keys of arguments that are objects."""


@dataclass(frozen=True, slots=True)
class Note:
    """What of a request is not done as it asks. `param`: the path of the argument. `code`: of the strict refusal.
    said: it is done as well as gpt-oss can, which strictness does not mind.
    """

    param: str
    text: str
    code: str | None = None
    said: bool = False

    @property
    def warning(self) -> str:
        return f"{self.param}: {self.text}"

    def refuse(self) -> ApiError:
        if self.code == "unknown_parameter":
            return bad_request(f"unknown argument {self.param[:100]!r}", self.param[:200], self.code)
        return bad_request(self.warning, self.param, self.code)


@dataclass(slots=True)
class Reading(Generic[Body]):
    """A request as it is understood: its checked `body`, the same as JSON in the API's own spellings (`raw`), and what
    is not done of it. `model`: the name under which it is answered.
    """

    body: Body
    raw: Json
    notes: list[Note]
    strict: bool = False
    model: str = ""

    def note(self, *notes: Note) -> None:
        """Add what else is not done. Raises ApiError where the server is strict."""
        for note in notes:
            if self.strict and not note.said:
                raise note.refuse()
            self.notes.append(note)

    @property
    def warnings(self) -> list[str]:
        return [note.warning for note in self.notes]


def read_arguments(kind: type[Body], raw: Json, strict: bool) -> Reading[Body]:
    """The request that `raw` is. Raises ApiError for what is wrong or, if `strict`, not done as asked."""
    fields = kind.model_fields
    responses = "input" in fields
    spelled, odd = respell(raw, responses)
    known = {key: value for key, value in spelled.items() if key in fields}
    for key, words in _ABSENT.items():
        if known.get(key) is not None:
            raise bad_request(f"{key}: {words}", key)
    try:
        body = kind.model_validate(known)
    except ValidationError as error:
        raise explain_validation(error) from None
    reading: Reading[Body] = Reading(body, known, [], strict)
    unknown = [*odd, *(key for key in spelled if key not in fields), *_list_unknown_inside(known)]
    reading.note(*(Note(key[:200], "unknown argument, ignored", "unknown_parameter") for key in unknown))
    reading.note(*_list_lacking(body, known))
    reading.note(*_describe_effort(known, responses))
    return reading


def _list_unknown_inside(raw: Json) -> list[str]:
    """Paths of what is not known inside arguments that are objects."""
    return [
        f"{name}.{key}"
        for name, known in _INSIDE.items()
        for key, value in (raw.get(name) or {}).items()
        if key not in known and value is not None
    ]


def _list_lacking(body: CommonBody, known: Json) -> Iterator[Note]:
    for name, (neutral, words) in LACKING.items():
        if name not in known:  # asking a model for what it does not have is slow
            continue
        value: Any = getattr(body, name)
        if value is not None and value != neutral:
            yield Note(name, words)


def _describe_effort(raw: Json, responses: bool) -> Iterator[Note]:
    inner = (raw.get("reasoning") or {}).get("effort")
    given = None if responses else raw.get("reasoning_effort")
    yield from note_effort(given or inner, "reasoning_effort" if given else "reasoning.effort")


def note_effort(effort: Any, where: str) -> Iterator[Note]:
    """What becomes of an effort that gpt-oss does not have."""
    if isinstance(effort, str) and effort in _MAPPED_EFFORTS:
        words = f"gpt-oss knows low, medium and high: {effort!r} is answered {_MAPPED_EFFORTS[effort]}"
        yield Note(where, words, said=True)
