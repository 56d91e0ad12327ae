"""A session's spans on one stage: `stage`, and per pass `queue`, `compute`, `encode` and `network` below it.

They are made when the session is over, with the times that the passes measured, so that nothing is traced on
the hot path. Of a long session the first passes have spans of their own; all of them are in the sums.
"""

from opentelemetry import trace

from stagemesh.tracing import tracer

from .session import PARTS, ReplicaSession


def record_session(
    session: ReplicaSession, replica_id: str, model: str, ended: float, error: str = ""
) -> None:
    """Export the spans of a finished session; does next to nothing while tracing is off."""
    source = tracer()
    span = source.start_span(
        f"stage {session.stage}",
        context=session.trace,
        start_time=_ns(session.opened),
        kind=trace.SpanKind.SERVER,
    )
    if span.is_recording():
        parent = trace.set_span_in_context(span)
        for index, (hop, queued) in enumerate(session.traced):
            at = queued - hop.network_us / 1e6
            for part in PARTS:
                child = source.start_span(part, context=parent, start_time=_ns(at))
                child.set_attribute("stagemesh.pass", index)
                at += getattr(hop, f"{part}_us") / 1e6
                child.end(_ns(at))
        span.set_attributes(
            {
                "gen_ai.request.model": model,
                "stagemesh.stage": session.stage,
                "stagemesh.replica": replica_id,
                "stagemesh.passes": session.passes,
                **{f"stagemesh.{name}_us": us for name, us in session.totals.items()},
            }
        )
        if error:
            span.set_status(trace.StatusCode.ERROR, error)
    span.end(_ns(ended))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
