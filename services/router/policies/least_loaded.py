"""The replica with the least work in front of it."""

import random
from collections.abc import Sequence

from .candidate import Candidate, only_ready


class LeastLoaded:
    """Fewest sessions of this router plus steps waiting; ties are broken at random."""

    def choose(self, candidates: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """One of those with the smallest load."""
        ready = only_ready(candidates)
        least = min(each.active + each.queue_depth for each in ready)
        return rng.choice([each for each in ready if each.active + each.queue_depth == least])
