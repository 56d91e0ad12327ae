"""A few random choices, and of those the one expected to finish first."""

import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, UNSURE, Ask, Candidate, only_ready

CHOICES = 32
"""Replicas that are compared; all of them where there are no more.

Two random choices suffice where replicas are alike. Where they differ by a factor of eight both are slow too often:
among 1,000 the slowest hundredth of sessions takes three times as long as with an omniscient policy (`bench balance`).
"""


class P2cEwma:
    """Compares random replicas by their cost: slowness x (sessions there + 1), and keeps the lowest.

    Slowness is relative to the fastest one compared. It is that of the peak step time when this is `UNSURE` times the
    fastest one's, so that a replica in trouble is left at once; and else that of the mean, as far as it is beyond
    doubt. A replica of unknown speed counts as fast as the fastest, so a new one gets its share at once and shows its
    speed; one that was slow drifts back there as that gets old, and never beyond, so that silence does not look like
    speed. Ties are broken at random.
    """

    def __init__(self, choices: int = CHOICES) -> None:
        self._choices = choices

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """The cheapest of at most `choices` random ready replicas."""
        compared = self._some(candidates, rng)
        costs = costs_of(compared, now)
        least = min(costs)
        return rng.choice([each for each, cost in zip(compared, costs, strict=True) if cost <= least])

    def _some(self, candidates: Sequence[Candidate], rng: random.Random) -> list[Candidate]:
        """`choices` random ready ones, now and then the same twice; all of them where there are no more."""
        if len(candidates) > self._choices:
            drawn = [each for each in rng.choices(candidates, k=self._choices) if each.ready]
            if len(drawn) == self._choices:
                return drawn
        ready = only_ready(candidates)
        return ready if len(ready) <= self._choices else rng.choices(ready, k=self._choices)


def costs_of(candidates: Sequence[Candidate], now: float) -> list[float]:
    """What each would cost, in step times of the fastest one."""
    slowness = slowness_of(candidates, now)
    return [times * (each.load(now) + 1) for times, each in zip(slowness, candidates, strict=True)]


def slowness_of(candidates: Sequence[Candidate], now: float) -> list[float]:
    """How many times as slow as the fastest one each is, as far as that is beyond doubt; see `P2cEwma`."""
    peak = min((each.peak_ms for each in candidates if each.peak_ms > 0), default=0.0)
    mean, doubt = min(
        ((each.mean_ms, each.doubt) for each in candidates if each.mean_ms > 0), default=(0.0, 0.0)
    )
    found = []
    for each in candidates:
        slowness = 1.0
        if each.peak_ms > peak > 0:
            slowness += (each.peak_ms / peak - 1.0) * each.confidence(now)
        if slowness < UNSURE:
            slowness = 1.0
            if each.mean_ms > mean * max(each.doubt, doubt):
                slowness = each.mean_ms / mean
        found.append(slowness)
    return found
