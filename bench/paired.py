"""Comparisons that survive a machine whose speed drifts: runs interleaved, ratios paired, noise said aloud.

Memory bandwidth of a shared machine moves by 30 % within an hour, so two contenders measured one after the other
cannot be compared. Here each round runs every contender once, a ratio is taken within its round, and what is quoted is
the median of those ratios with its quartiles. The order is another one in every round, the same ones in every run: caches and
the allocator are as the one before left them, and with A B A B nobody but A would ever follow B. Pure: no clock, no I/O.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")

# A ratio whose middle half is wider than this part of its median says nothing.
MEANINGLESS = 0.4
# Fewer pairs than this have no spread worth the name.
FEWEST_PAIRS = 3


class Verdict(StrEnum):
    """What a ratio says about its floor (or ceiling)."""

    REACHED = "reached"
    SHORT = "falls short"
    NOISE = "undecided"


def interleaved(contenders: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, contender) in the order to run them: every contender once before any runs again, in the first round as given."""
    shuffled, rng = list(contenders), random.Random(0)
    for number in range(rounds):
        for contender in shuffled:
            yield number, contender
        rng.shuffle(shuffled)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of a single value, that value three times."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, float(median(values)), high


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of paired ratios, its quartiles `low` and `high`, and how many pairs it is of."""

    value: float
    low: float
    high: float
    pairs: int

    @property
    def spread(self) -> float:
        """Width of the middle half as a part of the median."""
        return (self.high - self.low) / self.value

    @property
    def meaningless(self) -> str:
        """Why the ratio says nothing; empty when it says something."""
        if self.pairs < FEWEST_PAIRS:
            return f"only {self.pairs} pair{'' if self.pairs == 1 else 's'} measured"
        if self.spread > MEANINGLESS:
            return f"noise: the middle half of the ratios is {self.spread:.0%} of their median wide"
        return ""

    def verdict(self, bound: float, *, at_most: bool = False) -> Verdict:
        """Whether the ratio is on the right side of `bound`; undecided when its middle half lies across it."""
        reached = self.value <= bound if at_most else self.value >= bound
        if self.pairs < FEWEST_PAIRS or self.low < bound < self.high:
            return Verdict.NOISE
        return Verdict.REACHED if reached else Verdict.SHORT


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ratio of two contenders measured in the same rounds, in the order of the rounds.

    Raises:
        ValueError: not the same number of rounds, none at all, or a measurement that is not a positive number.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds of one and {len(theirs)} of the other cannot be paired")
    if any(not math.isfinite(value) or value <= 0 for value in (*ours, *theirs)):
        raise ValueError("a measurement is not a positive number")
    low, middle, high = quartiles([a / b for a, b in zip(ours, theirs, strict=True)])
    return Ratio(middle, low, high, len(ours))
