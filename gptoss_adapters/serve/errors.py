"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from gptoss_adapters.serve.settings import MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS

Json = dict[str, Any]
_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error. param: the path of the bad value, as in `messages[2].content`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> Json:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param or None, code=code)


_HELP = {
    "tool_choice": "none, auto, required, or an object that names a tool",
    "modalities": "this server writes text only",
    "include": "a list of strings",
    "input": "a text, or a list of items",
    "logit_bias": "an object of token ids and numbers of -100 to 100",
    "messages": "a list of messages, one at least",
    "metadata": "an object of 16 texts at most",
    "n": f"1 to {MAX_CHOICES}: send the request again for more choices",
    "stop": f"a text, or a list of at most {MAX_STOPS}; {MAX_STOP_CHARACTERS} characters each at most",
    "tools": "a list of objects",
    "truncation": "auto or disabled",
    "prompt": "a text, a list of texts, a list of ids, or a list of such lists",
}
"""What pydantic does not say of an argument."""


def explain_validation(error: ValidationError) -> ApiError:
    """The first thing that pydantic found wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    param = name + "".join(f"[{part}]" for part in first["loc"][1:2] if isinstance(part, int))
    if name == "stream_options" and len(first["loc"]) > 1:
        param = f"{name}.{first['loc'][1]}"
    facts = [f"expected {_HELP[name]}"] if name in _HELP else []
    if first["type"] != "missing":
        facts.append(f"got {_show(first['input'])}")
    return bad_request(f"{param}: {first['msg']}" + (f" ({' / '.join(facts)})" if facts else ""), param)


def _show(value: Any) -> str:
    """A value as a refusal names it: the kind of what may be long."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    return json.dumps(value, ensure_ascii=False, default=str)[:100]
