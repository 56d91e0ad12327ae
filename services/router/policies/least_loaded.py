"""The replica with the least work in front of it."""

import random
from collections.abc import Sequence

from .candidate import NOTHING_ASKED, Ask, Candidate, only_ready


class LeastLoaded:
    """Fewest sessions, this router's and those it heard of; ties are broken at random."""

    def choose(
        self, candidates: Sequence[Candidate], now: float, rng: random.Random, ask: Ask = NOTHING_ASKED
    ) -> Candidate:
        """One of those with the smallest load."""
        ready = only_ready(candidates)
        loads = [each.load(now) for each in ready]
        least = min(loads)
        return rng.choice([each for each, load in zip(ready, loads, strict=True) if load == least])
