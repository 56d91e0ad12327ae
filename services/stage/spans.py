"""A session's spans on one stage: `stage`, with events `passes` that list the parts of each pass's time.

An event holds up to 32 passes: each attribute is a list by commas, a number per pass in their order. The first passes
also have spans of their own below it, `queue`, `compute`, `encode` and `network`. Made and exported in a
loop of its own, a span costs 25 us, an event for each pass 16, a pass in a list 1.5. All of it is made when the session is over, with the times that the passes measured. Of a
very long session the first passes are listed; all of them are in the sums.
"""

from collections.abc import Awaitable, Callable

from opentelemetry import trace

from stagemesh import tracing
from stagemesh.tracing import tracer
from stagemesh.v1.registry_pb2 import Assignment

from .session import PARTS, ReplicaSession

# The prompt's pass and the first token's show how a session flows through its stages.
SPANNED_PASSES = 2
PASSES_PER_EVENT = 32
# Fields of a hop record that an event lists.
LISTED = ("queue_us", "compute_us", "encode_us", "network_us", "bubble_us", "rows")


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
        for begin in range(0, len(session.traced), PASSES_PER_EVENT):
            passes = session.traced[begin : begin + PASSES_PER_EVENT]
            hops = [hop for hop, _ in passes]
            listed = {f"stagemesh.{name}": ",".join([str(getattr(h, name)) for h in hops]) for name in LISTED}
            span.add_event("passes", {"stagemesh.pass": begin, **listed}, timestamp=_ns(passes[0][1]))
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
                **{f"stagemesh.{part}_us": us + _sum(session, part) for part, us in session.untraced.items()},
            }
        )
        if error:
            span.set_status(trace.StatusCode.ERROR, error)
    span.end(_ns(ended))


async def traced_load(assignment: Assignment, work: Callable[[], Awaitable[None]]) -> None:
    """Do what an assignment asks for in a span of the request that its model was woken for, if it was for one."""
    if not (tracing.enabled() and assignment.traceparent):
        await work()
        return
    with tracer().start_as_current_span(
        "stage.load",
        context=tracing.extract((("traceparent", assignment.traceparent),)),
        attributes={
            "gen_ai.request.model": assignment.model,
            "stagemesh.stage": assignment.stage,
            "stagemesh.replica": assignment.replica_id,
        },
    ):
        await work()


def _sum(session: ReplicaSession, part: str) -> int:
    return sum(getattr(hop, f"{part}_us") for hop, _ in session.traced)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
