"""Own small aio interceptors that carry W3C trace context through gRPC metadata.

A call with one request gets a span on each end. A stream of requests (a relay, a streamed inference) gets none,
since it may live for days; its context is passed on, and whoever works on one of its messages starts the span.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from stagemesh import tracing
from stagemesh.grpc_wrap import wrap_handler

# Probes and tools: spans of them would be noise.
_QUIET = ("/grpc.health.", "/grpc.reflection.", "/etcdserverpb.")

# Not a fault of the server, by OpenTelemetry's conventions for RPC.
_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


def _attributes(method: str) -> dict[str, str]:
    service, _, name = method.strip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _text(method: Any) -> str:
    return method.decode() if isinstance(method, bytes) else str(method)


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
    with tracing.tracer().start_as_current_span(
        method.strip("/"),
        context=parent,
        kind=SpanKind.SERVER,
        attributes=_attributes(method),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        code = grpc.StatusCode.OK
        try:
            yield
            code = _status_code(context.code())
        except grpc.aio.AbortError:
            code = _status_code(context.code())
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


class ServerTracing(grpc.aio.ServerInterceptor):
    """Continues the caller's trace around each handler. Put it before the interceptor that translates errors."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of the method, if there is one."""
        handler = await continuation(handler_call_details)
        method = _text(handler_call_details.method)
        if handler is None or method.startswith(_QUIET):
            return handler
        streaming = bool(handler.request_streaming)
        return wrap_handler(handler, lambda context: _serving(context, method, streaming))


def _with_trace(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(tuple(details.metadata) if details.metadata else ()))
    for key, value in tracing.inject():
        if key not in metadata:
            metadata.add(key, value)
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


def _end_with(call: Any, span: Span) -> None:
    def ended(done: Any) -> None:
        # `code()` of a finished call is ready, but only awaitable; the repr-free way is the private status.
        span.end()

    call.add_done_callback(ended)


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = _text(client_call_details.method)
        if method.startswith(_QUIET):
            return await continuation(client_call_details, request)
        span = tracing.tracer().start_span(
            method.strip("/"), kind=SpanKind.CLIENT, attributes=_attributes(method)
        )
        with trace.use_span(span, end_on_exit=False):
            call = await continuation(_with_trace(client_call_details), request)
        _end_with(call, span)
        return call


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_with_trace(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, requests: Any) -> Any:
        return await continuation(_with_trace(client_call_details), requests)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, requests: Any
    ) -> Any:
        return await continuation(_with_trace(client_call_details), requests)


def client_interceptors() -> list[Any]:
    """One interceptor for each kind of call."""
    return [_UnaryUnary(), _UnaryStream(), _StreamUnary(), _StreamStream()]
