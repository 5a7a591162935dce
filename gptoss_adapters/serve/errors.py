"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with a status."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

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


def explain_validation(error: ValidationError) -> ApiError:
    """The first thing that pydantic found wrong."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    known = first["type"] != "extra_forbidden"
    param = str(first["loc"][0]) if first["loc"] else None
    message = f"{param}: {first['msg']}" if known else f"unknown argument {str(param)[:100]!r}"
    return bad_request(message, param, None if known else "unknown_parameter")
