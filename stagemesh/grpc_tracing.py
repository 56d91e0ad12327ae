"""What a server puts around its handlers to continue the caller's trace, found in the metadata as W3C trace context.

A call with one request gets a span on each end. A stream of requests (a relay, a streamed inference) gets none,
since it may live for days; its context is passed on, and whoever works on one of its messages starts the span.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry.trace import SpanKind, Status, StatusCode

from stagemesh import tracing
from stagemesh.errors import StagemeshError
from stagemesh.grpc_tracing_channel import QUIET, rpc_attributes
from stagemesh.grpc_wrap import wrap_handler

# Faults of the server, by OpenTelemetry's conventions for RPC.
_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


def _status_code(code: Any) -> grpc.StatusCode:
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.OK)


@asynccontextmanager
async def _serving(context: grpc.aio.ServicerContext, method: str, streaming: bool) -> AsyncIterator[None]:
    parent = tracing.extract(context.invocation_metadata())
    if streaming:
        token = otel_context.attach(parent)
        try:
            yield
        finally:
            otel_context.detach(token)
        return
    with _server_span(method, parent, lambda: _status_code(context.code())):
        yield


def serving_message(method: str, traceparent: str) -> AbstractContextManager[None]:
    """The server's span around the work on one message of a stream, as a call of `method` would have it."""
    parent = tracing.extract((("traceparent", traceparent),))
    return _server_span(method, parent, lambda: grpc.StatusCode.OK)


@contextmanager
def _server_span(
    method: str, parent: otel_context.Context | None, said: Callable[[], grpc.StatusCode]
) -> Iterator[None]:
    """A span with the status that the work ended with; `said` gives it where nothing, or an abort, was raised."""
    with tracing.tracer().start_as_current_span(
        method.strip("/"),
        context=parent,
        kind=SpanKind.SERVER,
        attributes=rpc_attributes(method),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        code = grpc.StatusCode.OK
        try:
            yield
            code = said()
        except grpc.aio.AbortError:
            code = said()
            raise
        except StagemeshError as error:
            code = _status_code(error.grpc_code)
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            raise
        except BaseException:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            span.set_attribute("rpc.grpc.status_code", code.value[0])
            if code in _SERVER_FAULTS:
                span.set_status(Status(StatusCode.ERROR, code.name))


def with_trace(handler: Any, method: str) -> Any:
    """A handler that continues the caller's trace. Put it around the one that translates errors."""
    if method.startswith(QUIET):
        return handler
    streaming = bool(handler.request_streaming)
    return wrap_handler(handler, lambda context: _serving(context, method, streaming))
