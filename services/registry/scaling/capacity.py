"""How many nodes there should be, for whoever can start and stop some. Pure.

More: the replicas that found no room are packed into nodes of the usual size (first fit decreasing); so many are missing. Fewer: nodes
that were empty for long are too many, but for a few spare ones, which take a new replica without waiting for a machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low


@dataclass(frozen=True, slots=True)
class Bounds:
    """Nodes at least and at most, and empty ones kept for what comes."""

    least: int = 1
    most: int = 1
    spare: int = 0
    empty_after_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Wish:
    """How many nodes there should be, and why."""

    nodes: int
    reason: str


@dataclass(slots=True)
class Capacity:
    """Remembers since when there were too many."""

    bounds: Bounds
    _many_since: float | None = field(default=None, init=False)
    _least_empty: int = field(default=0, init=False)

    def decide(
        self,
        pending: Sequence[int],
        memories: Sequence[int],
        empty: int,
        now: float,
        *,
        starting: int = 0,
        crowded: bool = False,
    ) -> Wish | None:
        """The number of nodes that there should be, or None while the present one is right.

        Args:
            pending: bytes of each replica that has no room.
            memories: bytes of each node that takes partitions.
            empty: nodes of these without a partition.
            now: seconds.
            starting: nodes that were asked for and are not there yet.
            crowded: replicas on one node take each other's time, and no node is empty.
        """
        nodes = len(memories) + starting
        usual = median_low(memories) if memories else 0
        # However many nodes came, none would hold it.
        pending = [nbytes for nbytes in pending if nbytes <= usual or not usual]
        if pending or crowded:
            self._many_since = None
            more = missing_nodes(pending, usual) if pending else 1
            wanted = min(nodes + max(more - starting, 0), max(self.bounds.most, nodes))
            if wanted == nodes:
                return None
            why = f"{len(pending)} replicas of {sum(pending)} bytes have no room on {len(memories)} nodes"
            return Wish(
                wanted,
                why if pending else "replicas on one node take each other's time, and no node is empty",
            )
        if nodes < self.bounds.least:
            return Wish(self.bounds.least, f"{nodes} nodes are there, {self.bounds.least} is the least")
        return self._fewer(nodes, empty, now)

    def _fewer(self, nodes: int, empty: int, now: float) -> Wish | None:
        over = min(empty - self.bounds.spare, nodes - self.bounds.least)
        if over <= 0:
            self._many_since = None
            return None
        if self._many_since is None:
            self._many_since, self._least_empty = now, over
        self._least_empty = min(self._least_empty, over)
        if now - self._many_since < self.bounds.empty_after_s:
            return None
        fewer, self._many_since = self._least_empty, None
        return Wish(
            nodes - fewer, f"{empty} of {nodes} nodes were empty for {self.bounds.empty_after_s:.0f} s"
        )


def missing_nodes(pending: Sequence[int], memory: int) -> int:
    """Nodes of `memory` bytes that hold all of these; what is larger than a node needs one of its own, of another kind."""
    rooms: list[int] = []
    for nbytes in sorted(pending, reverse=True):
        place = next((nth for nth, room in enumerate(rooms) if room >= nbytes), None)
        if place is None:
            rooms.append(memory - nbytes)
        else:
            rooms[place] -= nbytes
    return len(rooms)
