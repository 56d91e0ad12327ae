"""Gray failure: a replica that answers, but takes many times as long as its peers and as itself before. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .step_times import StepTimes

SLOWER = 5.0
"""A replica is slow when its passes take so many times those of its peers ..."""
THAN_BEFORE = 3.0
"""... and so many times its own when it was well: slower hardware is a matter of balance, not of health."""
AT_LEAST_MS = 2.0
"""Differences below this are the machine's noise, whatever their ratio."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one replica: a pass now, None where too few were reported; as far as it is known at all; and when it is well.

    All in milliseconds, 0 where unknown.
    """

    replica_id: str
    now_ms: float | None
    known_ms: float
    normal_ms: float


def pace_of(replica_id: str, times: StepTimes, canary_ms: float, now: float) -> Pace:
    """The pace of a replica whose first pass, before it was ready, took `canary_ms`."""
    now_ms = times.now_ms(now)
    normal = [each for each in (canary_ms, times.mean_ms) if each > 0]
    return Pace(replica_id, now_ms, now_ms or times.mean_ms, min(normal, default=0.0))


def slow_ones(paces: Sequence[Pace]) -> list[Pace]:
    """Those that are slow now."""
    least = min((each.known_ms for each in paces if each.known_ms > 0), default=0.0)
    suspects = [each for each in paces if each.now_ms is not None and each.now_ms >= SLOWER * least]
    return [
        each
        for each in suspects
        if is_slow(each.now_ms or 0.0, each.normal_ms, others(paces, each.replica_id))
    ]


def is_slow(ms: float, normal_ms: float, peers_ms: Iterable[float]) -> bool:
    """Whether `ms` is slow beside the median of its peers, and beside its own normal where that is known."""
    known = [each for each in peers_ms if each > 0]
    if not known:
        return False
    middle = median(known)
    return ms >= max(SLOWER * middle, THAN_BEFORE * normal_ms, middle + AT_LEAST_MS)


def others(paces: Iterable[Pace], replica_id: str) -> list[float]:
    """What is known of the passes of its peers."""
    return [each.known_ms for each in paces if each.replica_id != replica_id]
