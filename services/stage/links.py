"""The streams of one replica: to the next replicas of its sessions, and from those before it."""

import asyncio
from collections.abc import Callable

from stagemesh.errors import StagemeshError
from stagemesh.v1.stage_pb2 import Feedback, RouteHop, SessionError

from . import metrics
from .link import Link


class Links:
    """Links by where they lead, made when needed, and streams that come in by their number.

    Args:
        replica_id: whose they are.
        model_name: for the metrics.
        stage: for the metrics.
        on_feedback: called with each error that comes back on a link.
        on_broken: called once for each link that broke.

    Attributes:
        upstreams: streams that frames come in on, numbered from 1, and how to answer on them.
        on_error: takes errors of sessions that began here; set by a head.
        shared_memory_bytes: what each link to a replica on this host may use; 0 is none, for what comes in as well.
        local_sockets: whether frames to and from replicas on this host may take a Unix socket.
    """

    local_sockets = True

    def __init__(
        self,
        replica_id: str,
        model_name: str,
        stage: int,
        on_feedback: Callable[[SessionError], None],
        on_broken: Callable[[RouteHop, StagemeshError], None],
    ) -> None:
        self.upstreams: dict[int, Callable[[Feedback], None]] = {}
        self.on_error: Callable[[SessionError], None] | None = None
        self.shared_memory_bytes = 0
        self._replica_id = replica_id
        self._on_feedback = on_feedback
        self._on_broken = on_broken
        self._errors = metrics.SESSION_ERRORS.labels(model_name, str(stage))
        self._links: dict[tuple[str, str], Link] = {}

    def __repr__(self) -> str:
        return f"<Links {list(self._links.values())} upstreams={len(self.upstreams)}>"

    @property
    def queued(self) -> int:
        """Frames that wait to go out."""
        return sum(link.queued for link in list(self._links.values()))

    def known(self, hop: RouteHop) -> Link | None:
        """The link to a replica, as it is."""
        return self._links.get((hop.address, hop.replica_id))

    def to(self, hop: RouteHop) -> Link:
        """The link to a replica; made when there is none that works."""
        link = self.known(hop)
        if link is None or link.broken:
            link = self._links[hop.address, hop.replica_id] = Link(
                self._replica_id,
                hop,
                self._feedback,
                lambda link, error: self._on_broken(link.hop, error),
                self.shared_memory_bytes,
                self.local_sockets,
            )
        return link

    def _feedback(self, link: Link, feedback: Feedback) -> None:
        for error in feedback.errors:
            self._on_feedback(error)

    def report(self, upstream: int, error: SessionError) -> None:
        """Send an error of a session towards its head; 0 is the head here, and a stream that ended takes nothing."""
        self._errors.inc()
        if upstream == 0:
            if self.on_error is not None:
                self.on_error(error)
        elif answer := self.upstreams.get(upstream):
            answer(Feedback(errors=[error]))

    async def close(self) -> None:
        """End every link."""
        await asyncio.gather(*(link.close() for link in self._links.values()), return_exceptions=True)
