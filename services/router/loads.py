"""What this router knows of each replica's load. Pure; time comes in as an argument."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from stagemesh.v1 import stage_pb2

from .policies import Candidate

DECAY_S = 10.0
"""Time constant with which trust in an unconfirmed step time fades, so that a slow replica is tried again."""
FRESH_S = 1.0
"""A queue depth older than this says nothing any more."""
COOL_DOWN_S = 2.0
"""How long a replica whose connection failed is passed over while there is another."""


@dataclass(slots=True)
class _Seen:
    active: int = 0
    routed: int = 0
    step_ms: float = 0.0
    step_at: float = float("-inf")
    queue_depth: int = 0
    queue_at: float = float("-inf")
    cool_until: float = float("-inf")


class Loads:
    """In-flight sessions, reported loads and recent failures, by replica id."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def __repr__(self) -> str:
        return f"Loads({ {name: (seen.active, seen.routed) for name, seen in self._seen.items()} })"

    def begin(self, replica_ids: Iterable[str]) -> None:
        """A session starts on these replicas."""
        for name in replica_ids:
            seen = self._of(name)
            seen.active += 1
            seen.routed += 1

    def end(self, replica_ids: Iterable[str]) -> None:
        """It is over."""
        for name in replica_ids:
            self._of(name).active -= 1

    def report(self, loads: Iterable[stage_pb2.ReplicaLoad], now: float) -> None:
        """Take loads that came with an answer: a slower step counts at once, a faster one gradually."""
        for load in loads:
            seen = self._of(load.replica_id)
            seen.queue_depth, seen.queue_at = load.queue_depth, now
            if load.step_ms > 0 and math.isfinite(load.step_ms):
                keep = math.exp(-max(now - seen.step_at, 0.0) / DECAY_S) if seen.step_ms else 0.0
                blended = seen.step_ms * keep + load.step_ms * (1 - keep)
                seen.step_ms, seen.step_at = max(load.step_ms, blended), now

    def failed(self, replica_id: str, now: float) -> None:
        """Its connection broke: pass it over for a moment."""
        self._of(replica_id).cool_until = now + COOL_DOWN_S

    def cooling(self, replica_id: str, now: float) -> bool:
        """Whether it failed a moment ago."""
        return now < self._of(replica_id).cool_until

    def candidate(self, replica_id: str, now: float, *, ready: bool) -> Candidate:
        """What a policy may know of this replica at this moment."""
        seen = self._of(replica_id)
        confidence = math.exp(-max(now - seen.step_at, 0.0) / DECAY_S)
        queue_depth = seen.queue_depth if now - seen.queue_at < FRESH_S else 0
        return Candidate(replica_id, ready, seen.active, queue_depth, seen.step_ms, confidence)

    def counts(self, replica_id: str) -> tuple[int, int]:
        """Sessions routed so far, and active now."""
        seen = self._of(replica_id)
        return seen.routed, seen.active

    def forget(self, keep: set[str]) -> None:
        """Drop what is known of replicas outside `keep` that run nothing."""
        for name in [name for name, seen in self._seen.items() if name not in keep and not seen.active]:
            del self._seen[name]

    def _of(self, name: str) -> _Seen:
        return self._seen.setdefault(name, _Seen())
