"""A channel that carries the current trace on in the metadata of every call.

It wraps what makes the calls instead of using gRPC's client interceptors: those put a proxy around each aio call
that starts it late, in a task of its own, and lacks `time_remaining`. Here the caller holds gRPC's own call.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from stagemesh import tracing
from stagemesh.errors import StagemeshError

# Probes and tools: spans of them would be noise.
QUIET = ("/grpc.health.", "/grpc.reflection.")


def rpc_attributes(method: str) -> dict[str, str]:
    """Span attributes of `/package.Service/Method` by OpenTelemetry's conventions."""
    service, _, name = method.strip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


class TracingChannel:
    """Stands in for a `grpc.aio.Channel`; everything but the making of calls is the channel's own."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def __repr__(self) -> str:
        return f"<TracingChannel {self._channel!r}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def __aenter__(self) -> "TracingChannel":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A maker of calls that each get a client span."""
        return _Spanned(self._channel.unary_unary(method, *args, **kwargs), method)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A maker of calls that each get a client span, from the request to the last response."""
        return _Spanned(self._channel.unary_stream(method, *args, **kwargs), method)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A maker of calls that carry the context on, with no span of their own."""
        return _Carrying(self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A maker of calls that carry the context on, with no span of their own."""
        return _Carrying(self._channel.stream_stream(method, *args, **kwargs))


def _with_trace(metadata: Any) -> tuple[Any, ...]:
    given = tuple(metadata or ())
    if any(key == "traceparent" for key, _ in given):
        return given
    return (*given, *tracing.inject())


class _Carrying:
    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        return self._make(*args, metadata=_with_trace(metadata), **kwargs)


class _Spanned:
    def __init__(self, make: Any, method: str) -> None:
        self._make = make
        self._name = method.strip("/")
        self._attributes = rpc_attributes(method)
        self._quiet = method.startswith(QUIET)

    def __call__(self, *args: Any, metadata: Any = None, **kwargs: Any) -> Any:
        if self._quiet:
            return self._make(*args, metadata=metadata, **kwargs)
        span = tracing.tracer().start_span(self._name, kind=SpanKind.CLIENT, attributes=self._attributes)
        with trace.use_span(span, end_on_exit=False):
            call = self._make(*args, metadata=_with_trace(metadata), **kwargs)
        call.add_done_callback(lambda done: _end(span, done))
        return call


@contextmanager
def calling_message(method: str, parent: Span) -> Iterator[str]:
    """The client's span around one message of a stream and its answer, as a call of `method` would have it.

    Gives the `traceparent` that the message carries.
    """
    span = tracing.tracer().start_span(
        method.strip("/"),
        context=trace.set_span_in_context(parent),
        kind=SpanKind.CLIENT,
        attributes=rpc_attributes(method),
    )
    code = 0
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            traceparent = dict(tracing.inject()).get("traceparent", "")
        yield traceparent
    except StagemeshError as error:
        code = error.grpc_code
        span.set_status(Status(StatusCode.ERROR, error.kind.upper()))
        raise
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED.value[0]
        raise
    finally:
        span.set_attribute("rpc.grpc.status_code", code)
        span.end()


def _end(span: Span, call: Any) -> None:
    # `code()` must be awaited, but a finished call has it: one step of the coroutine is all that it takes.
    waiting = call.code()
    try:
        waiting.send(None)
    except StopIteration as result:
        code: grpc.StatusCode = result.value
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        # Who cancels a call has what it needs; the peer did nothing wrong.
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            span.set_status(Status(StatusCode.ERROR, code.name))
    finally:
        waiting.close()
    span.end()
