"""The ASGI application: routes, the API key, one log line and one answer in OpenAI's shape whatever happens."""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from gptoss_adapters.backends.client import Backend
from gptoss_adapters.serve import chat, completions, messages, models, responses, stored
from gptoss_adapters.serve.errors import ApiError, Json
from gptoss_adapters.serve.exchange import ClientGone, Exchange
from gptoss_adapters.serve.service import Service, to_api_error
from gptoss_adapters.serve.settings import Settings
from gptoss_adapters.serve.store import Store

LOG = logging.getLogger("gptoss.serve")
_OPEN = ("/health",)  # needs no key
_GONE = 499  # in logs and metrics only: the client has left
Handler = Callable[[Service, Exchange, dict[str, str]], Awaitable[None]]


def create_app(backends: Sequence[Backend], settings: Settings, store: Store | None = None) -> App:
    """The application over opened backends of one model. It closes them, and the store, when it shuts down."""
    return App(Service(backends, settings, Store() if store is None else store))


class App:
    def __init__(self, service: Service) -> None:
        self.service = service
        self._key = service.settings.api_key.encode() if service.settings.api_key else None
        routes = [
            Route(path, _Endpoint(service, path, handlers), methods=list(handlers))
            for path, handlers in _ROUTES.items()
        ]
        self._router = Router(routes, redirect_slashes=False, lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        exchange.headers["x-request-id"] = ident = uuid.uuid4().hex
        if scope["path"].startswith(messages.PATH) or exchange.header("anthropic-version"):
            messages.use_own_errors(exchange, ident)
        began = time.perf_counter()
        status = 0
        trouble = None
        try:
            self._authorise(exchange)
            await self._router({**scope, "app": self, "exchange": exchange}, receive, send)
        except ClientGone:
            status = _GONE
        except Exception as error:
            trouble = to_api_error(_translate(error))
            if trouble.status == 500:
                LOG.exception("internal error", extra={"facts": {"request": ident}})
            if not exchange.status:
                await exchange.error(trouble)
            status = trouble.status
        finally:
            for generation in exchange.generations:
                generation.cancel()
            self._log(exchange, ident, status or exchange.status or _GONE, time.perf_counter() - began, trouble)

    def _authorise(self, exchange: Exchange) -> None:
        if self._key is None or exchange.scope["path"] in _OPEN:
            return
        kind, _, given = exchange.header("authorization").partition(" ")
        if own := exchange.header("x-api-key"):  # Anthropic's clients
            kind, given = "bearer", own
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            raise ApiError(
                401, "no valid API key was given", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

    def _log(self, exchange: Exchange, ident: str, status: int, seconds: float, trouble: ApiError | None) -> None:
        route = exchange.facts.pop("route", "other")
        self.service.metrics.count("requests_total", route=route, status=str(status))
        self.service.metrics.observe("request_seconds", seconds)
        facts = {"request": ident, "route": route, "status": status, "ms": round(1000 * seconds, 2), **exchange.facts}
        if trouble:
            facts["code"] = trouble.code
        LOG.info("request", extra={"facts": facts})

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        yield
        self.service.scheduler.close()
        for backend in self.service.backends:
            backend.close()
        self.service.store.close()


class _Endpoint:
    """An ASGI application, so that Starlette leaves receive and send to us."""

    def __init__(self, service: Service, path: str, handlers: dict[str, Handler]) -> None:
        self._service = service
        self._path = path
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        exchange.facts["route"] = f"{method} {self._path}"
        await self._handlers[method](self._service, exchange, scope["path_params"])


def _translate(error: Exception) -> Exception:
    if not isinstance(error, HTTPException):
        return error
    return ApiError(
        error.status_code, f"{error.detail}: see /openapi.json for what there is", headers=dict(error.headers or {})
    )


def _make_post_handler(create: Callable[[Service, Exchange, Json], Any]) -> Handler:
    async def handler(service: Service, exchange: Exchange, _: dict[str, str]) -> None:
        settings = service.settings
        raw = await exchange.body(settings.body_bytes, settings.body_seconds)
        await exchange.while_connected(create(service, exchange, raw))

    return handler


def _read_query(exchange: Exchange) -> dict[str, str]:
    from starlette.datastructures import QueryParams

    return dict(QueryParams(exchange.scope["query_string"]))


async def _retrieve(service: Service, exchange: Exchange, path: dict[str, str]) -> None:
    await stored.retrieve(service, exchange, path["response_id"], _read_query(exchange))


async def _delete(service: Service, exchange: Exchange, path: dict[str, str]) -> None:
    await stored.delete(service, exchange, path["response_id"])


async def _cancel(service: Service, exchange: Exchange, path: dict[str, str]) -> None:
    await stored.cancel(service, exchange, path["response_id"])


async def _list_input_items(service: Service, exchange: Exchange, path: dict[str, str]) -> None:
    await stored.list_input(service, exchange, path["response_id"], _read_query(exchange))


async def _report_health(service: Service, exchange: Exchange, _: dict[str, str]) -> None:
    scheduler = service.scheduler
    info = service.info
    load = {"running": scheduler.n_running, "waiting": scheduler.n_waiting}
    await exchange.json(
        {"status": "ok", "model": service.settings.model, "engine": info.engine, "version": info.version, **load}
    )


async def _report_metrics(service: Service, exchange: Exchange, _: dict[str, str]) -> None:
    await exchange.send(service.metrics.text().encode(), service.metrics.CONTENT_TYPE)


async def _send_openapi(service: Service, exchange: Exchange, _: dict[str, str]) -> None:
    from gptoss_adapters.serve.openapi import describe_api

    await exchange.json(describe_api())


_ROUTES: dict[str, dict[str, Handler]] = {
    "/v1/chat/completions": {"POST": _make_post_handler(chat.create)},
    "/v1/completions": {"POST": _make_post_handler(completions.create)},
    "/v1/responses": {"POST": _make_post_handler(responses.create)},
    "/v1/responses/input_tokens": {"POST": _make_post_handler(responses.count_tokens)},
    "/v1/responses/{response_id}": {"GET": _retrieve, "DELETE": _delete},
    "/v1/responses/{response_id}/cancel": {"POST": _cancel},
    "/v1/responses/{response_id}/input_items": {"GET": _list_input_items},
    messages.PATH: {"POST": _make_post_handler(messages.create)},
    f"{messages.PATH}/count_tokens": {"POST": _make_post_handler(messages.count_tokens)},
    "/v1/models": {"GET": models.list_models},
    "/v1/models/{model:path}": {"GET": models.retrieve_model},
    "/health": {"GET": _report_health},
    "/metrics": {"GET": _report_metrics},
    "/openapi.json": {"GET": _send_openapi},
}


class JsonLines(logging.Formatter):
    """One JSON object per line; contents of requests are not in it unless they are asked for."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
