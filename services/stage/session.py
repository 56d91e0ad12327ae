"""What a replica keeps of one session between its steps."""

from dataclasses import dataclass, field

from opentelemetry.context import Context

from stagemesh.errors import StagemeshError, from_code, seconds_of
from stagemesh.v1.stage_pb2 import HopRecord, LostReplica, RouteHop, SessionError, StepOpen

from .history import History
from .partition.kv import PrefixMissing, SessionKV

# What the time of a pass is made of, in the order in which it happens.
PARTS = ("network", "queue", "compute", "encode")
# Of a long session only the first passes are kept one by one.
MAX_TRACED_PASSES = 512


@dataclass(slots=True, eq=False)
class ReplicaSession:
    """One session on one replica.

    Attributes:
        session: its id.
        epoch: steps of an older one are discarded.
        open: route, sampling and limits, as the head sent them.
        kv: what it reserved; None for a stateless one.
        history: on the last stage, its tokens so far where a penalty needs them.
        upstream: id of the stream it came in on; 0 at the head.
        trace: context that its spans belong to.
        opened: Unix seconds.
        position: where its next step must begin.
        in_flight: passes that it takes part in now; what it reserved is kept until they end.
        ended: nothing more is sent for it.
        passes: how many it took part in.
        traced: hop record and time of queueing (Unix seconds) of the first ones, for their spans.
        untraced: microseconds of the others, by part and of bubbles.
        held: since when it waits for the replacement of a lost neighbour, Unix seconds; None while all is well.
        repeats: the position of a step that is through already, so that what it gave is sent on instead.
        next_hop: where its activations go; None on the last stage.
    """

    session: int
    epoch: int
    open: StepOpen
    stage: int
    upstream: int
    trace: Context
    opened: float
    kv: SessionKV | None = None
    history: History | None = None
    position: int = 0
    in_flight: int = 0
    ended: bool = False
    passes: int = 0
    traced: list[tuple[HopRecord, float]] = field(default_factory=list)
    untraced: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*PARTS, "bubble"), 0))
    held: float | None = None
    repeats: int | None = None
    next_hop: RouteHop | None = field(init=False)

    def __post_init__(self) -> None:
        self.follow(self.open)

    def follow(self, opening: StepOpen) -> None:
        """Go by these settings, and along this route, from now on."""
        self.open = opening
        route = opening.route
        self.next_hop = route[self.stage + 1] if self.stage + 1 < len(route) else None

    @property
    def holds(self) -> bool:
        """Whether it is kept for a while when a neighbour is lost."""
        return self.kv is not None and self.open.hold

    def record(self, hop: HopRecord, queued: float) -> None:
        """Keep a pass for the spans; `hop` has its times, `queued` is when it got here, Unix seconds."""
        if len(self.traced) < MAX_TRACED_PASSES:
            self.traced.append((hop, queued))
            return
        for part in self.untraced:
            self.untraced[part] += getattr(hop, f"{part}_us")

    @property
    def head(self) -> RouteHop:
        """The head of its route."""
        return self.open.route[0]


def session_error(
    session: int, epoch: int, error: StagemeshError, stage: int, lost: LostReplica | None = None
) -> SessionError:
    """What the head is told of a session that failed at `stage`, or of which only the part at `lost` is gone."""
    return SessionError(
        session=session,
        epoch=epoch,
        code=error.grpc_code,
        message=error.message,
        stage=stage,
        field=error.field,
        prefix_missing=isinstance(error, PrefixMissing),
        prefix_tokens=error.kept if isinstance(error, PrefixMissing) else 0,
        lost=lost,
        retry_after_ms=error.retry_after_ms,
    )


def from_session_error(error: SessionError, opening: StepOpen) -> StagemeshError:
    """What a session failed with, and at which replica of its route."""
    failure = from_code(error.code, error.message, error.field, seconds_of(error.retry_after_ms))
    if error.stage < len(opening.route):
        failure.culprit = opening.route[error.stage].replica_id
    return failure
