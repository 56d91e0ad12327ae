"""How much throughput no plan can exceed, and the cuts that come close to it. Pure.

Let nodes be divisible and let every class have a price per node, such that all nodes together cost 1. A plan of rate T
occupies `T * busy / batch` nodes for each of its stages, so it costs at least T times the cheapest path of slices, each
priced by its cheapest class. As no plan can cost more than 1, T <= 1 / (cheapest path). Every price gives such a
bound (Lagrange's), and multiplicative updates look for the prices that give the lowest; the paths met on the way are
where a good plan's cuts are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .problem import Floats, Problem

__all__ = ["Bound", "Slicing", "find_bound", "shortest"]

# Pieces before each stage and after the last: (0, ..., pieces).
Slicing = tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """Tokens per second that no plan exceeds; 0 when there is no plan. `prices` are per node of each class."""

    tokens_per_s: float
    prices: Floats
    slicings: tuple[Slicing, ...]


def find_bound(problem: Problem, rounds: int = 150) -> Bound:
    """The bound after so many price updates. The latency limit is left out, which keeps it a bound."""
    counts = np.array(problem.counts, dtype=np.float64)
    shares = np.full(len(counts), 1 / len(counts))  # of the total cost that each class has
    busy = problem.ideal / problem.goal.batch
    best, best_prices = np.inf, shares / counts
    seen: dict[Slicing, None] = {}
    for round_number in range(rounds):
        prices = shares / counts
        # inf stays inf at any price; a free class would make 0 * inf.
        cost = prices[:, None, None] * busy
        cheapest = cost.argmin(axis=0)
        least = np.take_along_axis(cost, cheapest[None], axis=0)[0]
        total, slicing = shortest(least, problem.goal.stages)
        if not np.isfinite(total):
            return Bound(0.0, best_prices, ())
        seen.pop(slicing, None)
        seen[slicing] = None
        if 1 / total < best:
            best, best_prices = 1 / total, prices
        used = np.zeros(len(counts))
        for first, end in pairwise(slicing):
            one = cheapest[first, end]
            used[one] += busy[one, first, end]
        slope = used / counts
        step = 2.0 / np.sqrt(1 + round_number)
        shares = np.maximum(shares * np.exp(step * slope / slope.max()), 1e-12)
        shares /= shares.sum()
    # Rounding errors must not turn a bound into less than what it bounds.
    return Bound(best * (1 + 1e-9), best_prices, tuple(reversed(seen)))


def shortest(cost: Floats, stages: int = 0) -> tuple[float, Slicing]:
    """Cheapest path of slices through all pieces, with exactly so many slices where `stages` is not 0.

    Args:
        cost: [first, end] of each slice, inf where there is none.
        stages: 0 for any number.

    Returns:
        Its cost, and the slicing; inf and () when there is none.
    """
    pieces = cost.shape[0]
    if not stages:
        total = np.full(pieces + 1, np.inf)
        total[0] = 0.0
        came = np.zeros(pieces + 1, dtype=int)
        for end in range(1, pieces + 1):
            options = total[:end] + cost[:end, end]
            came[end] = options.argmin()
            total[end] = options[came[end]]
        return _walk(float(total[pieces]), lambda end, _: int(came[end]), pieces)
    steps = []
    total = np.full(pieces + 1, np.inf)
    total[0] = 0.0
    for _ in range(stages):
        options = total[:-1, None] + cost
        steps.append(options.argmin(axis=0))
        total = options.min(axis=0)
    return _walk(float(total[pieces]), lambda end, nth: int(steps[-1 - nth][end]), pieces)


def _walk(total: float, came: Callable[[int, int], int], pieces: int) -> tuple[float, Slicing]:
    if not np.isfinite(total):
        return total, ()
    slicing = [pieces]
    while slicing[-1] > 0:
        slicing.append(came(slicing[-1], len(slicing) - 1))
    return total, tuple(reversed(slicing))
