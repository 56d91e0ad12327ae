"""A session's spans on one stage: `stage`, and per pass `queue`, `compute`, `encode` and `network` below it.

They are made when the session is over, with the times that the passes measured, so that nothing is traced on
the hot path. Of a long session the first passes have spans of their own; all of them are in the sums.
"""

from opentelemetry import trace

from stagemesh.tracing import tracer

from .session import ReplicaSession

MAX_TRACED_PASSES = 32


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
        totals = {"queue": 0, "compute": 0, "encode": 0, "network": 0}
        parent = trace.set_span_in_context(span)
        for index, (hop, started) in enumerate(session.passes):
            parts = {
                "network": hop.network_us,
                "queue": hop.queue_us,
                "compute": hop.compute_us,
                "encode": hop.encode_us,
            }
            at = started - hop.network_us / 1e6
            for name, us in parts.items():
                totals[name] += us
                if index < MAX_TRACED_PASSES:
                    child = source.start_span(name, context=parent, start_time=_ns(at))
                    child.set_attribute("stagemesh.pass", index)
                    at += us / 1e6
                    child.end(_ns(at))
        span.set_attributes(
            {
                "gen_ai.request.model": model,
                "stagemesh.stage": session.stage,
                "stagemesh.replica": replica_id,
                "stagemesh.passes": len(session.passes),
                **{f"stagemesh.{name}_us": us for name, us in totals.items()},
            }
        )
        if error:
            span.set_status(trace.StatusCode.ERROR, error)
    span.end(_ns(ended))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
