"""ASGI middleware: counts every answered request, and lets connections go while the router drains."""

import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .core import Core

_PATHS = frozenset(
    {
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/classify",
        "/health",
        "/metrics",
    }
)


class Recording:
    """Calls `core.record_http` with the path (one of a few, never the caller's text), status and seconds."""

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 499

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._core.draining:
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._core.record_http(_label(scope["path"]), status, time.monotonic() - started)


def _label(path: str) -> str:
    if path in _PATHS:
        return path
    return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
