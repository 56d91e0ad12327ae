"""Ways to keep models that take the memory of a fixed keep-alive, and which has proven better than it. Pure, online, by full information.

What each way would have done in an idle time is known when that time ends, whether it was followed or not: a cold start or none; what
memory it would have taken is known as it passes.

1. A way's price of memory rises while it takes more than the fixed keep-alive would have, and falls while it takes less: dual
   ascent on the Lagrangian of "fewest cold starts at that memory" (M. Mahdavi, R. Jin, T. Yang, "Trading Regret for Efficiency:
   Online Convex Optimization with Long Term Constraints", JMLR 13, 2012). What a way has taken too much is what the logarithm of its
   price has moved by, times a constant: it stays bounded for as long as it runs.
2. Followed is the way with the fewest cold starts once it is ahead of the fixed keep-alive by more than chance explains, and by a
   part of its cold starts; until then, and where nothing is better, the fixed keep-alive. (Prediction with expert advice; N. Cesa-Bianchi
   and G. Lugosi, "Prediction, Learning, and Games", 2006, chapter 2.) Idle times that end in the same half hour are no independent
   evidence (a service falls silent as a whole), so chance is measured between half hours.

Considered: prices on a grid, each with its own account, and the best of those that took less memory. Few were near the keep-alive's
memory at any time, and which ones they were changed with what the hazards had learned, so that little was ever proven.
"""

import numpy as np
from numpy.typing import NDArray

from .grid import Floats

SURE = 3.0
"""By how many standard deviations a way must be ahead."""
GAIN = 0.01
"""And by what part of the fixed keep-alive's cold starts."""
SHARE, LESS = 0.98, 0.94
"""Of the fixed keep-alive's memory, what ways aim at; and where more was really taken than `SOLVENT` of it."""
SOLVENT, CHEAP = 1.000001, 0.99
PACE, LEAST_PACE = 0.5, 0.003
"""By how much the logarithm of a price moves for each mean idle time's memory: the first over the root of how many were seen."""
BLOCK_S = 1800.0
MOST_BLOCKS = 96
"""Of blocks, after how many what was found counts half; while fewer have passed, half of those that have: the first prices are wrong."""
CHEAPEST, _DEAREST = -2.0, 12.0
"""What the logarithm of a price moves by at most. No cold start is worth more than e**2 of what the keep-alive takes it for: what memory
brings less than that is left unused."""
_STEP = 0.2


class Proof:
    """`settings` fixed keep-alives, each of which may be replaced by any of its own `ways`."""

    def __init__(self, settings: int, ways: int) -> None:
        shape = settings, ways
        # Idle times; cold starts and seconds of memory of the fixed keep-alives; seconds that were really taken.
        self.count: Floats = np.zeros(1)
        self.cold: Floats = np.zeros(settings)
        self.fixed_s: Floats = np.zeros(settings)
        self.spent_s: Floats = np.zeros(settings)
        # Of the ways: memory, what the logarithm of their price has moved by, and memory that it has not answered yet.
        self.used_s: Floats = np.zeros(shape)
        self.moved: Floats = np.zeros(shape)
        self.debt_s: Floats = np.zeros(shape)
        # Cold starts that a way would have spared: in all, squared by block, in this block. In how many idle times the two differed.
        self.ahead: Floats = np.zeros(shape)
        self.squares: Floats = np.zeros(shape)
        self.lately: Floats = np.zeros(shape)
        self.differ: Floats = np.zeros(shape)
        self.blocks: Floats = np.zeros(1)
        self.passed: Floats = np.zeros(1)
        self._block_since_s = float("-inf")

    def __repr__(self) -> str:
        return f"Proof(proven={int((self.best() >= 0).sum())} of {self.cold.size})"

    def tables(self) -> tuple[Floats, ...]:
        """All that is remembered."""
        return *self._fading(), self.moved, self.debt_s, self.lately, self.passed

    def spend(self, fixed_s: Floats, used_s: Floats, spent_s: Floats) -> None:
        """A model's idle time went on: seconds of memory since it was last told.

        Args:
            fixed_s: of the fixed keep-alives, [settings].
            used_s: of the ways, [settings, ways].
            spent_s: what was really taken, [settings].
        """
        self.fixed_s += fixed_s
        self.used_s += used_s
        self.spent_s += spent_s
        count = float(self.count[0])
        pace = max(LEAST_PACE, PACE / np.sqrt(1.0 + count))
        unit = np.maximum(self.fixed_s / max(count, 1.0), 1e-3)[:, None] / pace
        share = np.where(self.spent_s > SOLVENT * self.fixed_s, LESS, SHARE)
        self.debt_s += used_s - (share * fixed_s)[:, None]
        moved = np.clip(self.moved + np.clip(self.debt_s / unit, -_STEP, _STEP), CHEAPEST, _DEAREST)
        # What the cheapest price leaves over is no credit for later.
        at_end = (moved <= CHEAPEST) & (self.debt_s < 0)
        self.debt_s = np.where(at_end, 0.0, self.debt_s - (moved - self.moved) * unit)
        self.moved = moved

    def learn(self, fixed_ready: NDArray[np.bool_], ready: NDArray[np.bool_], now_s: float) -> None:
        """An idle time ended: whether the fixed keep-alives, [settings], and the ways, [settings, ways], had the model ready."""
        if self.count[0] == 0:
            self._block_since_s = now_s
        if now_s - self._block_since_s >= BLOCK_S:
            self._close(now_s)
        self.count += 1.0
        self.cold += ~fixed_ready
        self.differ += fixed_ready[:, None] != ready
        self.lately += ready.astype(np.float64) - fixed_ready[:, None]

    def best(self) -> NDArray[np.intp]:
        """The way to follow at each setting, -1 for the fixed keep-alive: [settings]."""
        ahead = self.ahead + self.lately
        spread = self.squares + self.lately**2 - ahead**2 / (self.blocks + 1.0)
        chance = np.sqrt(np.maximum(self.differ, spread))
        good = (ahead > SURE * chance + GAIN * self.cold[:, None]) & (
            self.used_s <= CHEAP * self.fixed_s[:, None]
        )
        return np.where(good.any(axis=1), np.where(good, ahead, -np.inf).argmax(axis=1), -1)

    def _fading(self) -> tuple[Floats, ...]:
        totals = self.count, self.cold, self.fixed_s, self.spent_s, self.used_s
        return *totals, self.ahead, self.squares, self.differ, self.blocks

    def _close(self, now_s: float) -> None:
        """A block ends; what is older counts less."""
        self._block_since_s = now_s
        fade = 0.5 ** (1.0 / min(MOST_BLOCKS, 1.0 + float(self.passed[0]) / 2))
        self.passed += 1.0
        for table in self._fading():
            table *= fade
        self.blocks += 1.0
        self.ahead += self.lately
        self.squares += self.lately**2
        self.lately = np.zeros_like(self.lately)
