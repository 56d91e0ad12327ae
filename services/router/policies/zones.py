"""Replicas nearby are preferred, while they are not overloaded."""

from collections.abc import Sequence

from .candidate import Candidate

BOUND = 1.5
"""Nearby replicas are kept to while the least loaded of them has at most so many times the average load, plus one."""


def nearby(candidates: Sequence[Candidate], zone: str, now: float) -> Sequence[Candidate]:
    """Those in `zone`; all of them where there is none there, or each there has clearly more to do than the average."""
    near = [each for each in candidates if each.zone == zone and each.ready] if zone else []
    if not near or len(near) == len(candidates):
        return candidates
    average = sum(each.load(now) for each in candidates) / len(candidates)
    return near if min(each.load(now) for each in near) <= BOUND * average + 1 else candidates
