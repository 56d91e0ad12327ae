"""Makes OTLP's messages of spans that are over, and has the SDK send them.

What is put aside when work ends is only how to describe it. The exporter's thread does the rest: it writes messages
directly, for a third of what the SDK takes to encode its own spans, and gives the interpreter away every `TURN_S`, or
others would wait for it up to five milliseconds (`sys.getswitchinterval`).
"""

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from stagemesh.tracing_span import Attributes, Finished

log = logging.getLogger(__name__)

MOST_IN_MESSAGE = 128
"""A receiver takes 4 MiB by default; a long session's span, with its events and those below it, is 12 KiB."""
TURN_S = 200e-6
"""A span takes 3 to 70 us, and to give the interpreter away and get it back 80."""
SCOPE = InstrumentationScope("stagemesh")

_FLAGS = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_ERROR = trace_pb2.Status.STATUS_CODE_ERROR
_KINDS = {
    trace.SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL,
    trace.SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
    trace.SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
    trace.SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
    trace.SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
}


class Later(ReadableSpan):
    """Stands in the queue for a span, and those below it, that are made when their turn comes, within `limits`."""

    def __init__(
        self,
        context: trace.SpanContext,
        parent: trace.SpanContext | None,
        resource: Resource,
        ids: IdGenerator,
        limits: SpanLimits,
        describe: Callable[[], Finished],
    ) -> None:
        super().__init__("", context, parent, resource, instrumentation_scope=SCOPE)
        self._ids = ids
        self._limits = limits
        self._describe = describe

    def add_to(self, spans: Any) -> None:
        """Make them and add them to `spans` of an OTLP message; nothing, but for words in the log, where that fails."""
        context, parent = self.get_span_context(), self.parent
        assert context is not None
        of_trace = {
            "trace_id": context.trace_id.to_bytes(16, "big"),
            "trace_state": context.trace_state.to_header(),
        }
        parent_id = parent.span_id.to_bytes(8, "big") if parent is not None else b""
        remote = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if parent is not None and parent.is_remote else 0
        before = len(spans)
        try:
            span_id = context.span_id.to_bytes(8, "big")
            self._add(spans, self._describe(), of_trace, span_id, parent_id, _FLAGS | remote)
        except Exception:  # those that wait beside it shall be sent
            log.exception("tracing.span_lost")
            del spans[before:]

    def _add(
        self,
        spans: Any,
        finished: Finished,
        of_trace: dict[str, Any],
        span_id: bytes,
        parent_id: bytes,
        flags: int,
    ) -> None:
        limits = self._limits
        events = finished.events[: limits.max_events]
        spans.add(
            **of_trace,
            span_id=span_id,
            parent_span_id=parent_id,
            flags=flags,
            name=finished.name,
            kind=_KINDS[finished.kind],
            start_time_unix_nano=finished.start_ns,
            end_time_unix_nano=finished.end_ns,
            **_attributes(finished.attributes, limits.max_span_attributes, limits.max_span_attribute_length),
            events=[
                {
                    "name": name,
                    "time_unix_nano": at,
                    **_attributes(attributes, limits.max_event_attributes, limits.max_attribute_length),
                }
                for name, attributes, at in events
            ],
            dropped_events_count=finished.dropped_events + len(finished.events) - len(events),
            status=None if finished.error is None else {"code": _ERROR, "message": finished.error},
        )
        for child in finished.children:
            child_id = self._ids.generate_span_id().to_bytes(8, "big")
            self._add(spans, child, of_trace, child_id, span_id, _FLAGS)


def _attributes(values: Attributes, most: int | None, longest: int | None) -> dict[str, Any]:
    """The fields of a span or event that hold the first `most` of them, texts cut to `longest` characters, and count the others."""
    # Dicts make messages in half the time that messages do.
    made = [{"key": key, "value": _value(value, longest)} for key, value in islice(values.items(), most)]
    return {"attributes": made, "dropped_attributes_count": len(values) - len(made)}


def _value(value: Any, longest: int | None) -> dict[str, Any]:
    if isinstance(value, str):
        return {"string_value": value[:longest]}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int):
        return {"int_value": value}
    if isinstance(value, float):
        return {"double_value": value}
    if isinstance(value, Sequence):
        return {"array_value": {"values": [_value(each, longest) for each in value]}}
    return {"string_value": str(value)[:longest]}


class Exporter(OTLPSpanExporter):
    """Exports what is `Later`; its thread leaves the interpreter to others in between."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them in messages of a bounded number; failed if one of them was not taken."""
        results = [
            super(Exporter, self).export(spans[at : at + MOST_IN_MESSAGE])
            for at in range(0, len(spans), MOST_IN_MESSAGE)
        ]
        return SpanExportResult.FAILURE if SpanExportResult.FAILURE in results else SpanExportResult.SUCCESS

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        # The hook that OTLP's exporters of each signal have for their own messages. Resource and scope around the
        # spans are what the SDK makes of the first one.
        message = super()._translate_data(data[:1])
        spans = message.resource_spans[0].scope_spans[0].spans
        del spans[:]
        ends = time.perf_counter() + TURN_S
        for span in data:
            if isinstance(span, Later):
                span.add_to(spans)
            if time.perf_counter() > ends:
                time.sleep(0)  # gives the interpreter's lock to a thread that waits for it
                ends = time.perf_counter() + TURN_S
        return message
