"""A session's spans on one stage: `stage`, with events `passes` that list the parts of each pass's time.

An event holds up to 32 passes: each attribute is a list by commas, a number per pass in their order. The first passes
also have spans of their own below it, `queue`, `compute`, `encode` and `network`. All of it is made when it is exported,
from the times that the passes measured: at a session's end only these are put aside. Of a very long session the first
passes are listed; all of them are in the sums.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from opentelemetry import trace

from stagemesh import tracing
from stagemesh.tracing import tracer
from stagemesh.tracing_span import Finished
from stagemesh.v1.registry_pb2 import Assignment
from stagemesh.v1.stage_pb2 import HopRecord

from .session import PARTS, ReplicaSession

# The prompt's pass and the first token's show how a session flows through its stages.
SPANNED_PASSES = 2
PASSES_PER_EVENT = 32
# Fields of a hop record that an event lists.
LISTED = ("queue_us", "compute_us", "encode_us", "network_us", "bubble_us", "rows")
_listed = attrgetter(*LISTED)


@dataclass(slots=True)
class _Taken:
    """What a session leaves for its spans: hop record and time of queueing of its first passes, sums of the others."""

    stage: int
    opened: float
    ended: float
    traced: list[tuple[HopRecord, float]]
    untraced: dict[str, int]
    passes: int
    attributes: dict[str, str | int]
    error: str

    def described(self) -> Finished:
        """Its span, with those of its first passes below; on the exporter's thread."""
        columns = dict(zip(LISTED, zip(*(_listed(hop) for hop, _ in self.traced), strict=True), strict=False))
        events = []
        for begin in range(0, len(self.traced), PASSES_PER_EVENT):
            listed: dict[str, str | int] = {
                f"stagemesh.{name}": ",".join(map(str, values[begin : begin + PASSES_PER_EVENT]))
                for name, values in columns.items()
            }
            events.append(("passes", {"stagemesh.pass": begin, **listed}, _ns(self.traced[begin][1])))
        sums = {
            f"stagemesh.{part}_us": us + sum(columns.get(f"{part}_us", ()))
            for part, us in self.untraced.items()
        }
        return Finished(
            f"stage {self.stage}",
            _ns(self.opened),
            _ns(self.ended),
            {**self.attributes, "stagemesh.passes": self.passes, **sums},
            trace.SpanKind.SERVER,
            events,
            error=self.error or None,
            children=list(self._parts()),
        )

    def _parts(self) -> Iterator[Finished]:
        for index, (hop, queued) in enumerate(self.traced[:SPANNED_PASSES]):
            at = queued - hop.network_us / 1e6
            for part in PARTS:
                begun = at
                at += getattr(hop, f"{part}_us") / 1e6
                yield Finished(part, _ns(begun), _ns(at), {"stagemesh.pass": index})


def record_session(
    session: ReplicaSession, replica_id: str, model: str, ended: float, error: str = ""
) -> None:
    """Export the spans of a finished session; does nothing while tracing is off."""
    if not tracing.enabled():
        return
    taken = _Taken(
        session.stage,
        session.opened,
        ended,
        list(session.traced),
        dict(session.untraced),
        session.passes,
        {"gen_ai.request.model": model, "stagemesh.stage": session.stage, "stagemesh.replica": replica_id},
        error,
    )
    tracing.finished(session.trace, f"stage {session.stage}", trace.SpanKind.SERVER, taken.described)


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


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
