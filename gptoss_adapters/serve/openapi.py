"""The OpenAPI description: requests as `bodies` checks them, answers as the `openai` package declares them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from gptoss_adapters.serve.bodies import ChatBody, ResponsesBody
from gptoss_adapters.serve.completions_body import CompletionBody
from gptoss_adapters.serve.errors import Json
from gptoss_adapters.serve.messages_body import CountTokensBody, MessagesBody

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                key: {"type": "string"} if key in ("message", "type") else {"type": ["string", "null"]}
                for key in ("message", "type", "param", "code")
            },
        }
    },
}
_DELETED = {
    "type": "object",
    "required": ["id", "deleted"],
    "properties": {"id": {"type": "string"}, "deleted": {"type": "boolean"}},
}
_MESSAGES_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"],
    "properties": {
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "content": {"type": "array", "items": {"type": "object", "required": ["type"]}},
        "stop_reason": {
            "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
        },
        "stop_sequence": {"type": ["string", "null"]},
        "usage": {"type": "object", "required": ["input_tokens", "output_tokens"]},
    },
}
_TOKENS = {"type": "object", "required": ["input_tokens"], "properties": {"input_tokens": {"type": "integer"}}}
_COUNTED = {
    "type": "object",
    "required": ["object", "input_tokens"],
    "properties": {"object": {"const": "response.input_tokens"}, "input_tokens": {"type": "integer"}},
}
_POST_ERRORS = (400, 401, 404, 408, 413, 415, 429, 503)
_TEXTS = {
    400: "A request that is wrong, or asks for what cannot be given",
    401: "No valid API key",
    404: "No such model or response",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "The queue is full; Retry-After says when to try again",
    503: "The backend failed, or none became free in time",
}


@cache
def describe_api() -> Json:
    from openai.types import Completion, Model
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response, ResponseItemList
    from pydantic.json_schema import models_json_schema

    kinds = (ChatBody, CompletionBody, ResponsesBody, MessagesBody, CountTokensBody)
    bodies: list[Any] = [(kind, "validation") for kind in kinds]
    shapes = (ChatCompletion, Completion, Response, ResponseItemList, Model)
    answers: list[Any] = [(kind, "serialization") for kind in shapes]
    found, schemas = models_json_schema([*bodies, *answers], ref_template="#/components/schemas/{model}")
    of = {kind: found[kind, mode] for kind, mode in [*bodies, *answers]}
    paths = _describe_paths(of)
    info = {
        "title": "gptoss-serve",
        "version": "1",
        "description": "OpenAI's Responses and Chat Completions APIs, and Anthropic's Messages, over gpt-oss backends.",
    }
    components = {
        "schemas": {**schemas["$defs"], "Error": _ERROR, "MessagesError": _MESSAGES_ERROR},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, "security": [{}, {"key": []}]}


def _describe_paths(of: Mapping[Any, Json]) -> Json:
    """`of`: class -> the reference to its schema."""
    from openai.types import Completion, Model
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response, ResponseItemList

    ident = _parameter("response_id", "path", {"type": "string", "minLength": 1, "pattern": "^[^/]+$"})
    models = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": of[Model]}},
    }
    paging = [
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}),
        _parameter("order", "query", {"enum": ["asc", "desc"]}),
        _parameter("after", "query", {"type": "string"}),
    ]
    return {
        "/v1/chat/completions": {"post": _post("createChatCompletion", of[ChatBody], of[ChatCompletion])},
        "/v1/completions": {"post": _post("createCompletion", of[CompletionBody], of[Completion])},
        "/v1/responses": {"post": _post("createResponse", of[ResponsesBody], of[Response])},
        "/v1/responses/input_tokens": {"post": _post("countInputTokens", of[ResponsesBody], _COUNTED)},
        "/v1/responses/{response_id}": {
            "get": _get("getResponse", of[Response], [ident], 400, 404),
            "delete": _get("deleteResponse", _DELETED, [ident], 404),
        },
        "/v1/responses/{response_id}/cancel": {"post": _get("cancelResponse", of[Response], [ident], 400, 404)},
        "/v1/responses/{response_id}/input_items": {
            "get": _get("listInputItems", of[ResponseItemList], [ident, *paging], 400, 404)
        },
        "/v1/messages": {"post": _post("createMessage", of[MessagesBody], _MESSAGE, "MessagesError")},
        "/v1/messages/count_tokens": {
            "post": _post("countTokens", of[CountTokensBody], _TOKENS, "MessagesError", streams=False)
        },
        "/v1/models": {"get": _get("listModels", models, [])},
        "/v1/models/{model}": {
            "get": _get("getModel", of[Model], [_parameter("model", "path", {"type": "string", "minLength": 1})], 404)
        },
        "/health": {"get": _get("health", {"type": "object"}, [])},
        "/metrics": {"get": _get("metrics", {"type": "string"}, [], kind="text/plain")},
    }


def _post(name: str, body: Json, answer: Json, error: str = "Error", streams: bool = True) -> Json:
    content = {"application/json": {"schema": answer}} | ({"text/event-stream": {}} if streams else {})
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The answer; events with stream: true", "content": content},
            **_errors(*_POST_ERRORS, shape=error),
        },
    }


def _get(name: str, answer: Json, parameters: list[Json], *errors: int, kind: str = "application/json") -> Json:
    good = {"description": "OK", "content": {kind: {"schema": answer}}}
    return {"operationId": name, "parameters": parameters, "responses": {"200": good, **_errors(401, *errors)}}


def _errors(*statuses: int, shape: str = "Error") -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {str(status): {"description": _TEXTS[status], "content": content} for status in statuses}


def _parameter(name: str, place: str, schema: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}
