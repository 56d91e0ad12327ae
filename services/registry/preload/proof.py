"""Which of several ways to keep models has proven better than the fixed keep-alive. Pure, online, by full information.

What each way would have done in an idle time is known when that time ends, whether it was followed or not: a cold start or none, and
so much memory. Followed is the way with the fewest cold starts among those that would have taken no more memory than the fixed
keep-alive, once it is ahead by more than chance explains; until then, and where nothing is better, the fixed keep-alive. (Prediction
with expert advice; N. Cesa-Bianchi and G. Lugosi, "Prediction, Learning, and Games", 2006, chapter 2.)

Considered: one price for memory and the sum of both. Where the curve of the fixed keep-alive is not convex (requests in steps of
a minute, say) no price leads to the settings in its bays, and settings far apart would collapse into one.
"""

import numpy as np
from numpy.typing import NDArray

from .grid import Floats

SURE = 4.0
"""By how many standard deviations a way must be ahead."""
CUSHION = 0.97
"""Of the fixed keep-alive's memory: that a way would have taken less so far does not mean that it will."""
HALF = 5_000.0
"""Idle times after which what was found counts half."""


class Proof:
    """`settings` fixed keep-alives, each of which may be replaced by any of `ways` others."""

    def __init__(self, settings: int, ways: int) -> None:
        self.fixed_s: Floats = np.zeros(settings)
        self.memory_s: Floats = np.zeros(ways)
        # What was really taken, following now one way and now another.
        self.spent_s: Floats = np.zeros(settings)
        # Cold starts that a way would have spared, and in how many idle times the two differed.
        self.ahead: Floats = np.zeros((settings, ways))
        self.differ: Floats = np.zeros((settings, ways))
        self._fade = 0.5 ** (1.0 / HALF)

    def __repr__(self) -> str:
        return f"Proof(proven={int((self.best() >= 0).sum())} of {self.fixed_s.size})"

    def tables(self) -> tuple[Floats, ...]:
        """All that is remembered."""
        return self.fixed_s, self.memory_s, self.spent_s, self.ahead, self.differ

    def learn(
        self,
        fixed_ready: NDArray[np.bool_],
        fixed_s: Floats,
        ready: NDArray[np.bool_],
        memory_s: Floats,
        spent_s: Floats,
    ) -> None:
        """An idle time ended: who was ready at its end, and seconds of memory.

        Args:
            fixed_ready, fixed_s: of the fixed keep-alives, [settings].
            ready, memory_s: of the ways, [ways].
            spent_s: what was really taken, [settings].
        """
        differs = fixed_ready[:, None] != ready[None, :]
        for table in self.tables():
            table *= self._fade
        self.fixed_s += fixed_s
        self.memory_s += memory_s
        self.spent_s += spent_s
        self.differ += differs
        self.ahead += np.where(differs, np.where(ready, 1.0, -1.0), 0.0)

    def best(self) -> NDArray[np.intp]:
        """The way to follow at each setting, -1 for the fixed keep-alive: [settings]."""
        cheap = self.memory_s <= CUSHION * self.fixed_s[:, None]
        solvent = self.spent_s <= self.fixed_s
        good = cheap & solvent[:, None] & (self.ahead > SURE * np.sqrt(self.differ))
        return np.where(good.any(axis=1), np.where(good, self.ahead, -np.inf).argmax(axis=1), -1)
