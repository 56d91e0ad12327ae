"""OpenTelemetry: one trace per request, through every hop. A cheap no-op until OTEL_EXPORTER_OTLP_ENDPOINT is set."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stagemesh.errors import ConfigError
from stagemesh.tracing_span import Finished, Tracer

log = logging.getLogger(__name__)

_PROPAGATOR = TraceContextTextMapPropagator()
_NO_TRACER = trace.NoOpTracer()
_KEYS = ("traceparent", "tracestate")

_provider: Any = None
_tracer: trace.Tracer = _NO_TRACER


def setup_tracing(service: str, instance: str) -> None:
    """Export spans by OTLP/gRPC if OTEL_EXPORTER_OTLP_ENDPOINT is set; once per process, before channels are made.

    `service` becomes `service.name` and `instance` `service.instance.id`. The SDK's own OTEL_* variables
    (sampler, headers, batch sizes, limits of a span) are obeyed.

    Raises:
        ConfigError: one of them cannot be; tracing stays off.
    """
    global _provider, _tracer
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if _provider is not None or not endpoint or disabled:
        return
    # Imported here: most processes never trace, and the SDK takes a while to import.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from stagemesh.tracing_export import Exporter, Later

    # Without a scheme the exporter would insist on TLS.
    insecure = True if "://" not in endpoint else None
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    delay = os.environ.get("OTEL_BSP_SCHEDULE_DELAY") or "1000"
    if not delay.isdecimal():
        raise ConfigError(f"OTEL_BSP_SCHEDULE_DELAY must be milliseconds, not {delay[:40]!r}")
    try:
        limits = SpanLimits()
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = Exporter(endpoint=endpoint, insecure=insecure)
        processor = BatchSpanProcessor(exporter, schedule_delay_millis=float(delay))
    except ValueError as wrong:
        raise ConfigError(f"a variable of OpenTelemetry (OTEL_*): {wrong}") from wrong
    provider.add_span_processor(processor)
    _provider, ids = provider, provider.id_generator

    def put(
        made: trace.SpanContext, parent: trace.SpanContext | None, describe: Callable[[], Finished]
    ) -> None:
        processor.on_end(Later(made, parent, resource, ids, limits, describe))

    _tracer = Tracer(_provider.sampler, ids, put, limits.max_events)
    log.info("tracing.started service=%s instance=%s", service, instance)


async def shutdown_tracing() -> None:
    """Export what is left, waiting three seconds at most, and turn tracing off."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, _NO_TRACER
    if provider is None:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def close() -> None:
        provider.force_flush(timeout_millis=2500)
        provider.shutdown()
        with suppress(RuntimeError):  # the loop may be gone by now
            loop.call_soon_threadsafe(done.set)

    # A thread that nobody joins: an absent receiver must not hold up the end of the process.
    threading.Thread(target=close, name="tracing-shutdown", daemon=True).start()
    try:
        await asyncio.wait_for(done.wait(), timeout=3.0)
    except TimeoutError:
        log.warning("tracing.shutdown_timed_out")


def enabled() -> bool:
    """Whether spans are exported."""
    return _provider is not None


def tracer() -> trace.Tracer:
    """The process's tracer; ask each time, it changes with `setup_tracing`."""
    return _tracer


def finished(context: Context, name: str, kind: trace.SpanKind, describe: Callable[[], Finished]) -> None:
    """Export a span of work that is over, below the span in `context`; nothing while tracing is off, or not sampled.

    `describe` is called on the exporter's thread: what it reads must not change any more.
    """
    if isinstance(_tracer, Tracer):
        _tracer.finished(context, name, kind, describe)


def inject() -> tuple[tuple[str, str], ...]:
    """The current span as gRPC metadata; empty when there is none."""
    if _provider is None:
        return ()
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return tuple(carrier.items())


def extract(metadata: Iterable[tuple[str, Any]] | None) -> Context:
    """The caller's span from gRPC metadata or HTTP headers (pairs); an empty context when there is none."""
    if _provider is None or metadata is None:
        return Context()
    carrier = {}
    for key, value in metadata:
        name = key.lower()
        if name in _KEYS:
            carrier[name] = value if isinstance(value, str) else bytes(value).decode("latin-1")
    return _PROPAGATOR.extract(carrier, context=Context())


def traced(channel: Any) -> Any:
    """The channel, carrying the current trace on with every call; the same channel while tracing is off."""
    if _provider is None:
        return channel
    from stagemesh.grpc_tracing_channel import TracingChannel

    return TracingChannel(channel)


def server_wraps() -> list[Any]:
    """What a server puts around its handlers to continue the caller's trace; nothing while tracing is off."""
    if _provider is None:
        return []
    from stagemesh.grpc_tracing import with_trace

    return [with_trace]
