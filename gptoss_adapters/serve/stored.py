"""/v1/responses/{id}: retrieve, delete, cancel, list the input items."""

from __future__ import annotations

import asyncio
import re

from gptoss_adapters.serve.errors import ApiError, Json, bad_request
from gptoss_adapters.serve.exchange import Exchange
from gptoss_adapters.serve.service import Service
from gptoss_adapters.serve.store import Stored

_PAGE = (1, 100)  # input items


async def retrieve(service: Service, exchange: Exchange, ident: str, query: dict[str, str]) -> None:
    if query.get("stream", "false").lower() not in ("false", "0", ""):
        raise bad_request("stream: a stored response cannot be streamed again: ask for it without stream", "stream")
    await exchange.json((await _load(service, ident)).response)


async def delete(service: Service, exchange: Exchange, ident: str) -> None:
    if not await asyncio.to_thread(service.store.delete, ident):
        raise _refuse_unknown(ident)
    await exchange.json({"id": ident, "object": "response", "deleted": True})


async def cancel(service: Service, exchange: Exchange, ident: str) -> None:
    """Ends a response that is being written and will be stored; it is given, and kept, as far as it got."""
    running = service.running.get(ident)
    response: Json | None = await running.cancel() if running else None
    if response is None:
        status = (await _load(service, ident)).response["status"]
        raise bad_request(
            f"response_id: a response that is {status} cannot be cancelled: only one that is being written",
            "response_id",
        )
    await exchange.json(response)


async def list_input(service: Service, exchange: Exchange, ident: str, query: dict[str, str]) -> None:
    limit = query.get("limit", "20")
    order = query.get("order", "desc")
    after = query.get("after")
    if not re.fullmatch(r"\d{1,4}", limit, re.ASCII) or not _PAGE[0] <= int(limit) <= _PAGE[1]:
        raise bad_request(f"limit is out of range (expected {_PAGE[0]}..{_PAGE[1]} / got {limit[:100]!r})", "limit")
    if order not in ("asc", "desc"):
        raise bad_request(f"unknown order (expected asc or desc / got {order[:100]!r})", "order")
    items = (await _load(service, ident)).input
    items = items if order == "asc" else items[::-1]
    if after is not None:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise bad_request(f"no item has this id (got {after[:100]!r})", "after")
        items = items[at + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    await exchange.json({"object": "list", "data": page, "has_more": len(items) > len(page), **ends})


async def _load(service: Service, ident: str) -> Stored:
    found = await asyncio.to_thread(service.store.get, ident)
    if found is None:
        raise _refuse_unknown(ident)
    return found


def _refuse_unknown(ident: str) -> ApiError:
    return ApiError(404, f"no response {ident[:100]!r} is stored here", code="response_not_found", param="response_id")
