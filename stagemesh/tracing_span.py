"""Spans that cost a few microseconds while the work runs; the exporter makes messages of them (`tracing_export.py`).

The SDK's own cost two to four times as much there, for locks and limits, and as much again on the exporter's thread.
Sampling, ids, the queue and the way to the receiver are the SDK's.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler

Attributes = Mapping[str, Any]
"""Strings, numbers, booleans, and sequences of these, by name."""


@dataclass(slots=True)
class Finished:
    """A span of work that is over.

    Attributes:
        start_ns: Unix nanoseconds, as is `end_ns`.
        events: name, attributes and time (Unix nanoseconds) of each.
        dropped_events: how many there were beside these.
        error: why it failed, in words or empty; None when it did not.
        children: spans below it, made with it.
    """

    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    kind: SpanKind = SpanKind.INTERNAL
    events: Sequence[tuple[str, Attributes, int]] = ()
    dropped_events: int = 0
    error: str | None = None
    children: "Sequence[Finished]" = ()


Put = Callable[[SpanContext, SpanContext | None, Callable[[], Finished]], None]
"""Takes a span that is over: its ids, its parent's, and how to describe it, which is asked on another thread."""


class Recorded(trace.Span):
    """A span that is sampled, with at most so many events; those beyond are counted.

    Not for several threads at once; only errors count as a status.
    """

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: Attributes | None,
        start_ns: int,
        put: Put,
        most_events: int | None,
    ) -> None:
        self._context = context
        self._parent = parent
        self._put: Put | None = put
        self._told = Finished(name, start_ns, 0, dict(attributes) if attributes else {}, kind)
        self._attributes: dict[str, Any] = self._told.attributes  # type: ignore[assignment]
        self._events: list[tuple[str, Attributes, int]] = []
        self._most_events = most_events

    def __repr__(self) -> str:
        return f"<Recorded {self._told.name!r} {self._context.span_id:016x}>"

    def get_span_context(self) -> SpanContext:  # noqa: D102 (as in OpenTelemetry's API, all below)
        return self._context

    def is_recording(self) -> bool:  # noqa: D102
        return self._put is not None

    def set_attribute(self, key: str, value: Any) -> None:  # noqa: D102
        if self._put is not None:
            self._attributes[key] = value

    def set_attributes(self, attributes: Attributes) -> None:  # noqa: D102
        if self._put is not None:
            self._attributes.update(attributes)

    def add_event(  # noqa: D102
        self, name: str, attributes: Attributes | None = None, timestamp: int | None = None
    ) -> None:
        if self._put is None:
            return
        if self._most_events is not None and len(self._events) >= self._most_events:
            self._told.dropped_events += 1
            return
        self._events.append((name, dict(attributes or {}), timestamp or time.time_ns()))

    def update_name(self, name: str) -> None:  # noqa: D102
        if self._put is not None:
            self._told.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:  # noqa: D102
        code, said = (
            (status, description)
            if isinstance(status, StatusCode)
            else (status.status_code, status.description)
        )
        if self._put is not None and code is StatusCode.ERROR:
            self._told.error = said or ""

    def record_exception(  # noqa: D102
        self,
        exception: BaseException,
        attributes: Attributes | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        of_it = {
            "exception.type": type(exception).__qualname__,
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**of_it, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:  # noqa: D102
        put, self._put = self._put, None
        if put is not None:
            self._told.end_ns = end_time or time.time_ns()
            self._told.events = self._events
            put(self._context, self._parent, lambda: self._told)


class Tracer(trace.Tracer):
    """Makes spans as OpenTelemetry's specification has it, and has `put` take them when they are over.

    Links between spans, and decorators, are left out: the mesh has none.
    """

    def __init__(
        self, sampler: "Sampler", ids: "IdGenerator", put: Put, most_events: int | None = None
    ) -> None:
        self._sampler = sampler
        self._ids = ids
        self._put = put
        self._most_events = most_events

    def start_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        start_time: int | None = None,
    ) -> trace.Span:
        """A span below the one in `context`, or in the current one; it only carries ids on where it is not sampled."""
        sampled, made, parent, attributes = self._below(context, name, kind, attributes)
        if not sampled:
            return trace.NonRecordingSpan(made)
        started = start_time or time.time_ns()
        return Recorded(name, made, parent, kind, attributes, started, self._put, self._most_events)

    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> AbstractContextManager[trace.Span]:
        """A span that is the current one while the body of `with` runs, and ends with it."""
        span = self.start_span(name, context, kind, attributes)
        return trace.use_span(span, True, record_exception, set_status_on_exception)

    def finished(self, context: Context, name: str, kind: SpanKind, describe: Callable[[], Finished]) -> None:
        """A span of work that is over already; see `tracing.finished`."""
        sampled, made, parent, _ = self._below(context, name, kind, None)
        if sampled:
            self._put(made, parent, describe)

    def _below(
        self, context: Context | None, name: str, kind: SpanKind, attributes: Attributes | None
    ) -> tuple[bool, SpanContext, SpanContext | None, Attributes | None]:
        """Whether it is sampled, its ids, its parent's, and its attributes with the sampler's."""
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            parent = None
        trace_id = parent.trace_id if parent is not None else self._ids.generate_trace_id()
        decided = self._sampler.should_sample(context, trace_id, name, kind, attributes)
        sampled = decided.decision.is_sampled()
        flags = parent.trace_flags if parent is not None else 0
        flags = flags | TraceFlags.SAMPLED if sampled else flags & ~TraceFlags.SAMPLED
        span_id = self._ids.generate_span_id()
        made = SpanContext(trace_id, span_id, False, TraceFlags(flags), decided.trace_state)
        return sampled, made, parent, decided.attributes
