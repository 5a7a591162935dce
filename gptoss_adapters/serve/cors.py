"""Web pages as clients: CORS headers for the origins that the server's owner names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptoss_adapters.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_READABLE = ("x-request-id", "request-id", "retry-after")  # headers that a page's script may see


def check_origins(given: Sequence[str]) -> tuple[str, ...]:
    """The origins, or "*" alone. Raises UsageError: an origin with a path, or without a scheme, would never match."""
    for origin in given:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError("option --cors-origin", expected='https://host, http://localhost:3000 or "*"', got=origin)
    return ("*",) if "*" in given else tuple(given)


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application for these origins' pages too. Preflights need no key, since browsers send none with them; any
    header is allowed, because SDKs send a dozen of their own. Pages may send cookies unless every origin is allowed.
    """
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        allow_credentials="*" not in origins,
        expose_headers=_READABLE,
    )
