"""Spans of work that is over already, made when they are exported.

The SDK's tracer makes a span while the work runs, for 12 to 60 us each on the thread that works: locks, clocks and limits
for what may still change. Of work that was measured anyway nothing may change any more, so what is put aside at its end
is only how to describe it; the exporter's thread writes OTLP's messages from that. It gives the interpreter away every
`TURN_S`, or others would wait for it up to five milliseconds (`sys.getswitchinterval`).
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from stagemesh.tracing import Finished

log = logging.getLogger(__name__)

MOST_IN_MESSAGE = 512
"""Spans, as in the SDK's own batches. A receiver takes 4 MiB by default."""
COUNTS_AS = 8
"""Of those, what is put aside counts as so many: it has events and children."""
TURN_S = 200e-6
"""A span takes 3 to 70 us; to give the interpreter away and get it back costs about as much."""
SCOPE = InstrumentationScope("stagemesh")

T = TypeVar("T", bound=ReadableSpan)

_KINDS = {
    trace.SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL,
    trace.SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
    trace.SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
    trace.SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
    trace.SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
}


class Later(ReadableSpan):
    """Stands in the queue for a span, and those below it, that are made when their turn comes."""

    def __init__(
        self,
        context: trace.SpanContext,
        parent: trace.SpanContext | None,
        resource: Resource,
        ids: IdGenerator,
        describe: Callable[[], Finished],
    ) -> None:
        super().__init__("", context, parent, resource, instrumentation_scope=SCOPE)
        self._ids = ids
        self._describe = describe

    def add_to(self, spans: Any) -> None:
        """Make them and add them to `spans` of an OTLP message; nothing, but for words in the log, where that fails."""
        context, parent = self.get_span_context(), self.parent
        assert context is not None
        try:
            finished = self._describe()
        except Exception:  # those that wait beside it shall be sent
            log.exception("tracing.span_lost")
            return
        flags = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
        self._add(
            spans,
            finished,
            {
                "trace_id": context.trace_id.to_bytes(16, "big"),
                "trace_state": context.trace_state.to_header(),
            },
            context.span_id.to_bytes(8, "big"),
            parent.span_id.to_bytes(8, "big") if parent is not None else b"",
            flags | (trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if parent and parent.is_remote else 0),
        )

    def _add(
        self,
        spans: Any,
        finished: Finished,
        of_trace: dict[str, Any],
        span_id: bytes,
        parent_id: bytes,
        flags: int,
    ) -> None:
        spans.add(
            **of_trace,
            span_id=span_id,
            parent_span_id=parent_id,
            flags=flags,
            name=finished.name,
            kind=_KINDS[finished.kind],
            start_time_unix_nano=finished.start_ns,
            end_time_unix_nano=finished.end_ns,
            attributes=_attributes(finished.attributes),
            events=[
                {"name": name, "attributes": _attributes(attributes), "time_unix_nano": at}
                for name, attributes, at in finished.events
            ],
            status={"code": trace_pb2.Status.STATUS_CODE_ERROR, "message": finished.error}
            if finished.error
            else None,
        )
        for child in finished.children:
            child_id = self._ids.generate_span_id().to_bytes(8, "big")
            local = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
            self._add(spans, child, of_trace, child_id, span_id, local)


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    # Dicts make messages in half the time that messages do.
    return [
        {"key": key, "value": {"int_value": value} if isinstance(value, int) else {"string_value": value}}
        for key, value in values.items()
    ]


def context_below(
    around: Context, name: str, kind: trace.SpanKind, sampler: Sampler, ids: IdGenerator
) -> tuple[trace.SpanContext | None, trace.SpanContext | None]:
    """Ids of a new span in a context, and its parent's; none where the sampler does not want it.

    As OpenTelemetry's specification has it for the creation of spans.
    """
    parent: trace.SpanContext | None = trace.get_current_span(around).get_span_context()
    if parent is None or not parent.is_valid:
        parent = None
    trace_id = parent.trace_id if parent is not None else ids.generate_trace_id()
    decided = sampler.should_sample(around, trace_id, name, kind)
    if not decided.decision.is_sampled():
        return None, parent
    flags = trace.TraceFlags((parent.trace_flags if parent is not None else 0) | trace.TraceFlags.SAMPLED)
    made = trace.SpanContext(trace_id, ids.generate_span_id(), False, flags, decided.trace_state)
    return made, parent


class Exporter(OTLPSpanExporter):
    """Exports spans, and those that are made only now; its thread leaves the interpreter to others in between."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them in messages of a bounded number; failed if one of them was not taken."""
        results = [super(Exporter, self).export(some) for some in _messages(spans)]
        return SpanExportResult.FAILURE if SpanExportResult.FAILURE in results else SpanExportResult.SUCCESS

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        # The hook that OTLP's exporters of each signal have for their own messages.
        later = [span for span in data if isinstance(span, Later)]
        message = super()._translate_data(_InTurns(span for span in data if not isinstance(span, Later)))
        if later:
            # With what the SDK makes of the first, for the resource and the scope around them.
            around = super()._translate_data(later[:1]).resource_spans[0]
            into = around.scope_spans[0].spans
            del into[:]
            for span in _in_turns(later):
                span.add_to(into)
            message.resource_spans.append(around)
        return message


class _InTurns(list[ReadableSpan]):
    """A list whose reader lets other threads run now and then."""

    def __iter__(self) -> Iterator[ReadableSpan]:
        return _in_turns(super().__iter__())


def _in_turns(spans: Iterable[T]) -> Iterator[T]:
    ends = time.perf_counter() + TURN_S
    for span in spans:
        yield span
        if time.perf_counter() > ends:
            time.sleep(0)  # gives the interpreter's lock to a thread that waits for it
            ends = time.perf_counter() + TURN_S


def _messages(spans: Sequence[ReadableSpan]) -> Iterator[list[ReadableSpan]]:
    some: list[ReadableSpan] = []
    room = MOST_IN_MESSAGE
    for span in spans:
        counts = COUNTS_AS if isinstance(span, Later) else 1
        if counts > room:
            yield some
            some, room = [], MOST_IN_MESSAGE
        some.append(span)
        room -= counts
    if some:
        yield some
