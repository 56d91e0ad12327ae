"""What a replica keeps of one session between its steps."""

from dataclasses import dataclass, field

from opentelemetry.context import Context

from stagemesh.v1.stage_pb2 import HopRecord, RouteHop, StepOpen

from .partition.kv import SessionKV


@dataclass(slots=True, eq=False)
class ReplicaSession:
    """One session on one replica.

    Attributes:
        session: its id.
        epoch: steps of an older one are discarded.
        open: route, sampling and limits, as the head sent them.
        kv: what it reserved; None for a stateless one.
        upstream: id of the stream it came in on; 0 at the head.
        trace: context that its spans belong to.
        opened: Unix seconds.
        passes: (queue, compute, encode, network microseconds, start Unix seconds) of each pass.
    """

    session: int
    epoch: int
    open: StepOpen
    stage: int
    upstream: int
    trace: Context
    opened: float
    kv: SessionKV | None = None
    passes: list[tuple[HopRecord, float]] = field(default_factory=list)

    @property
    def next_hop(self) -> RouteHop | None:
        """Where its activations go; None on the last stage."""
        route = self.open.route
        return route[self.stage + 1] if self.stage + 1 < len(route) else None

    @property
    def head(self) -> RouteHop:
        """The head of its route."""
        return self.open.route[0]
