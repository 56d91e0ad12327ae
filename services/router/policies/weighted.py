"""Shares by speed, whatever the load: a smooth weighted round robin."""

import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready

MOST = 16.0
"""A replica gets at most so many times what its slowest peer gets; a speed beyond that was hardly measured right."""


class Weighted:
    """Each replica's share is its speed: 1 / the mean step time, or the canary's while there is no other.

    A replica of unknown speed counts as the median of its peers. Choices are spread evenly: each replica's credit grows by its
    share at every choice, the largest one is chosen and pays 1, so that over any stretch of choices with constant weights
    each is less than one turn per peer away from its due.
    """

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The replica with the most credit."""
        ready = only_ready(candidates)
        weights = shares_of(ready)
        # What replicas that went away are owed, or owe, goes with them.
        credits = [
            self._credit.get(each.replica_id, 0.0) + weight
            for each, weight in zip(ready, weights, strict=True)
        ]
        best = max(range(len(ready)), key=credits.__getitem__)
        credits[best] -= 1.0
        self._credit = {each.replica_id: credit for each, credit in zip(ready, credits, strict=True)}
        return ready[best]


def shares_of(candidates: Sequence[Candidate]) -> list[float]:
    """What part of all sessions each should get; they sum up to 1."""
    times = [each.mean_ms or each.canary_ms for each in candidates]
    known = sorted(each for each in times if each > 0)
    if not known:
        return [1.0 / len(candidates)] * len(candidates)
    middle = known[len(known) // 2]
    fastest = known[-1] / MOST
    speeds = [1.0 / max(each or middle, fastest) for each in times]
    total = sum(speeds)
    return [speed / total for speed in speeds]
