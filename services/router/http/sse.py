"""Server-sent events: one JSON document an event, `[DONE]` at the end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stagemesh.errors import DeadlineExceeded, InternalError, StagemeshError

from .disconnect import disconnected
from .errors import error_body

_log = logging.getLogger(__name__)
# An answer may go on being written for this long after its deadline: a slow reader.
_GRACE_S = 10.0


def event(document: Any) -> bytes:
    """Return one event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class SseResponse(Response):
    """Streams the documents of `events`; an error among them becomes a last event in OpenAI's error shape.

    `close` is awaited when the answer is over or the client has gone away.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        close: Callable[[], Awaitable[None]],
        *,
        headers: dict[str, str],
        seconds: float,
    ) -> None:
        """`seconds` is the time left until the request's deadline."""
        self._events = events
        self._close = close
        self._seconds = max(0.0, seconds) + _GRACE_S
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        sending = asyncio.create_task(self._send(send))
        watching = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait(
                {sending, watching}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if sending.done():
                sending.result()
        except OSError:
            pass  # the client went away between two events
        finally:
            for task in (sending, watching):
                task.cancel()
            await asyncio.gather(sending, watching, return_exceptions=True)
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for document in self._events:
                await self._write(send, event(document))
            await self._write(send, b"data: [DONE]\n\n")
        except StagemeshError as error:
            await self._write(send, event(error_body(error)))
        except TimeoutError:
            await self._write(send, event(error_body(DeadlineExceeded("the request's deadline passed"))))
        except OSError:
            raise
        except Exception:
            _log.exception("a stream failed")
            await self._write(send, event(error_body(InternalError("internal error"))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
