"""Around every API path: who is calling, and errors in one shape."""

import logging
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from stagemesh.errors import InternalError, InvalidArgument, StagemeshError

from ..context import RequestContext
from .body import discard_rest
from .core import Core
from .errors import BodyTooLarge, MethodNotAllowed, UnknownPath, error_body, error_headers

_log = logging.getLogger(__name__)
Handler = Callable[[Request, RequestContext], Awaitable[Response]]


def endpoint(core: Core, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return a Starlette endpoint that authenticates, calls `handler` and turns its errors into responses."""

    async def serve(request: Request) -> Response:
        request_id = ""
        try:
            context = core.context(request.headers)
            request_id = context.request_id
            response = await handler(request, context)
        except StagemeshError as error:
            response = error_response(error, request)
        except Exception:
            _log.exception("request %s failed", request_id)
            response = error_response(InternalError("internal error"), request)
        if request_id:
            response.headers["x-request-id"] = request_id
        return response

    return serve


def error_response(error: StagemeshError, request: Request) -> Response:
    """Return the error in OpenAI's shape."""
    if isinstance(error, BodyTooLarge):
        return _RefusedBody(error, request)
    return JSONResponse(error_body(error), status_code=error.http_status, headers=error_headers(error))


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (unknown path, wrong method) in the same shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(UnknownPath(f"no such path: {request.url.path[:100]}"), request)
    if error.status_code == 405:
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed here"), request)
        response.headers.update(error.headers or {})
        return response
    return error_response(InvalidArgument(str(error.detail)[:200]), request)


def context_of(context: RequestContext, index: int, count: int) -> RequestContext:
    """The context of one of several generations of a request: ids of their own."""
    return context if count == 1 else context._replace(request_id=f"{context.request_id}-{index}")


class _RefusedBody(JSONResponse):
    """Answers before the body has been read, then takes some of the rest so that the answer gets through."""

    def __init__(self, error: StagemeshError, request: Request) -> None:
        super().__init__(error_body(error), status_code=error.http_status, headers={"connection": "close"})
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await discard_rest(self._request)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
