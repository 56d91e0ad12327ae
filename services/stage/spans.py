"""A session's spans on one stage: `stage`, with an event `pass` for each pass and the parts of its time.

The first few passes also have spans of their own below it, `queue`, `compute`, `encode` and `network`: those four cost
six times what an event does. All of it is made when the session is over, with the times that the passes measured, so
that nothing is traced on the hot path. Of a long session the first passes have events; all of them are in the sums.
"""

from opentelemetry import trace

from stagemesh.tracing import tracer

from .session import PARTS, ReplicaSession

# The prompt's pass and a few tokens' after it show how a session flows through its stages.
SPANNED_PASSES = 4


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
        for hop, queued in session.traced:
            span.add_event(
                "pass",
                {
                    "stagemesh.queue_us": hop.queue_us,
                    "stagemesh.compute_us": hop.compute_us,
                    "stagemesh.encode_us": hop.encode_us,
                    "stagemesh.network_us": hop.network_us,
                    "stagemesh.bubble_us": hop.bubble_us,
                    "stagemesh.rows": hop.rows,
                },
                timestamp=_ns(queued),
            )
        for index, (hop, queued) in enumerate(session.traced[:SPANNED_PASSES]):
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
                "stagemesh.bubble_us": session.bubble_us,
                **{f"stagemesh.{name}_us": us for name, us in session.totals.items()},
            }
        )
        if error:
            span.set_status(trace.StatusCode.ERROR, error)
    span.end(_ns(ended))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
