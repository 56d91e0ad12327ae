"""A real OTLP/gRPC trace receiver for tests: keeps every span that it is sent."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True)
class Span:
    """One exported span; ids are hex, `parent_id` is empty for a root, times are in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int  # 1 internal, 2 server, 3 client
    start_ns: int
    end_ns: int
    error: bool
    service: str
    instance: str
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)  # name, time, attributes
    dropped_events: int = 0
    dropped_attributes: tuple[int, ...] = ()  # of the span, and of each event


def _value(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, which) if which else None


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """`start()`, then point OTEL_EXPORTER_OTLP_ENDPOINT at `endpoint`."""

    def __init__(self) -> None:
        self.port = 0
        self._spans: list[Span] = []
        self.messages: list[int] = []
        """Spans in each message."""
        self._server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> "OtlpReceiver":
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """All spans so far, or those of one trace, by start time."""
        found = [span for span in self._spans if trace_id in (None, span.trace_id)]
        return sorted(found, key=lambda span: span.start_ns)

    async def wait_for(self, *names: str, within_s: float = 10.0) -> list[Span]:
        """The spans, once every name has arrived at least once; fails with what did arrive."""
        try:
            async with asyncio.timeout(within_s):
                while not set(names) <= {span.name for span in self._spans}:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"only {sorted({span.name for span in self._spans})} arrived") from None
        return self.spans()

    async def Export(self, request: Any, context: Any) -> Any:
        before = len(self._spans)
        for resource_spans in request.resource_spans:
            resource = {item.key: _value(item.value) for item in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self._spans.append(
                        Span(
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                            error=span.status.code == 2,
                            service=resource.get("service.name", ""),
                            instance=resource.get("service.instance.id", ""),
                            attributes={item.key: _value(item.value) for item in span.attributes},
                            events=[
                                (
                                    event.name,
                                    event.time_unix_nano,
                                    {item.key: _value(item.value) for item in event.attributes},
                                )
                                for event in span.events
                            ],
                            dropped_events=span.dropped_events_count,
                            dropped_attributes=tuple(
                                each.dropped_attributes_count for each in (span, *span.events)
                            ),
                        )
                    )
        self.messages.append(len(self._spans) - before)
        return trace_service_pb2.ExportTraceServiceResponse()
