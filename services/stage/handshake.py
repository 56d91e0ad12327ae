"""What two replicas agree on when a stream between them begins: a version, and who can do what beyond it. Pure.

Each end names the versions that it speaks, and both speak the highest that they share. A version is raised only when a
frame comes to mean something else; whatever can be left out is a feature with a name, and is asked only of an end
that names it. Fields that an end does not know stay in the steps, opens, hops and errors that it passes on. Those of a
frame stay only while it is passed on whole, so what belongs to one session has its place in the step.
"""

from dataclasses import dataclass

from stagemesh.errors import FailedPrecondition
from stagemesh.v1.stage_pb2 import Hello

PROTOCOL = 1
MIN_PROTOCOL = 1

# It tells that it lives while it holds frames.
HEARTBEAT = "heartbeat"
# It holds sessions that lost a neighbour, and rebuilds one from what its upstream neighbour kept.
RECOVERY = "recovery"
# It takes several frames in one message, and large ones in parts.
PARCELS = "parcels"
# What this version can do.
FEATURES = (HEARTBEAT, RECOVERY, PARCELS)


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a stream.

    Attributes:
        replica_id: what it calls itself.
        protocol: the version that both speak.
        features: what both can do beyond it.
    """

    replica_id: str
    protocol: int
    features: frozenset[str]

    def speaks(self, feature: str) -> bool:
        """Whether it may be asked for that."""
        return feature in self.features


def introduce(hello: Hello) -> Hello:
    """Put this end's versions and features into a hello; returns it."""
    hello.protocol = PROTOCOL
    hello.min_protocol = MIN_PROTOCOL
    hello.features.extend(FEATURES)
    return hello


def agree(theirs: Hello, replica_id: str) -> Peer:
    """What both ends speak, from what the other one said.

    Args:
        theirs: its hello; one of the first versions says nothing of itself, or its protocol only.
        replica_id: who it is.

    Raises:
        FailedPrecondition: there is no version that both speak; the message names those of both.
    """
    highest = theirs.protocol or 1
    lowest = min(theirs.min_protocol or 1, highest)
    agreed = min(highest, PROTOCOL)
    if agreed < max(lowest, MIN_PROTOCOL):
        raise FailedPrecondition(
            f"the replicas speak no common protocol: {_span(MIN_PROTOCOL, PROTOCOL)} here, {_span(lowest, highest)} there",
            field="hello.protocol",
        )
    return Peer(replica_id, agreed, frozenset(FEATURES).intersection(theirs.features))


def _span(lowest: int, highest: int) -> str:
    return str(highest) if lowest == highest else f"{lowest} to {highest}"
