"""Two random choices, and of those the one expected to finish first."""

import random
from collections.abc import Sequence

from .candidate import Candidate, only_ready

NOISE = 4.0
"""Replicas whose step times differ by less than this factor count as equally fast.

A pass of many sessions takes longer than a pass of few at the same speed, and on a shared machine a step time
swings from one second to the next; following either would send most sessions to whichever replica was measured
last. Smaller real differences show soon enough in the sessions that pile up on the slower one.
"""


class P2cEwma:
    """Takes two replicas at random and keeps the one of lower cost: relative step time x (work + 1).

    Work is active sessions plus steps waiting. A replica of unknown speed counts as fast as the fastest, so a
    new one gets its share at once and shows its speed; one that was slow drifts back there as that gets old, and
    never beyond, so that silence does not look like speed. Ties are broken at random.
    """

    def choose(self, candidates: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """The cheaper of two random ready replicas."""
        ready = only_ready(candidates)
        if len(ready) == 1:
            return ready[0]
        fastest = min((each.step_ms for each in ready if each.step_ms > 0), default=0.0)
        first, second = rng.sample(ready, 2)
        return min(first, second, key=lambda each: _cost(each, fastest))


def _cost(candidate: Candidate, fastest_ms: float) -> float:
    slowness = candidate.step_ms / fastest_ms if fastest_ms > 0 and candidate.step_ms > 0 else 1.0
    slowness = 1.0 + (slowness - 1.0) * candidate.confidence
    return (slowness if slowness >= NOISE else 1.0) * (candidate.active + candidate.queue_depth + 1)
