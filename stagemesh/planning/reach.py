"""Is there a plan of at least this throughput? Exact, where neither latency nor the number of stages is limited. Pure.

For every multiset U of nodes: how many pieces can a chain of stages cover, each of at least the wanted rate, with the
nodes in U? `reach[U]` is the greatest, over the last stage's nodes V within U, of what V can carry on to from
`reach[U - V]`. Being further never hurts: a shorter slice takes less time and less memory, so whatever follows a
shorter chain can follow a longer one. U runs over the counts of each class, so equal nodes cost little.
"""

from itertools import pairwise

import numpy as np

from .bound import shortest
from .problem import Problem, Stage, Stages

__all__ = ["Reach", "fits_reach", "stack_equal"]

_MOST_STATES = 4096
_MOST_PAIRS = 3_000_000
_MOST_RATES = 8_000_000


def fits_reach(problem: Problem) -> bool:
    """Whether `Reach` can do it in a few seconds."""
    if problem.goal.stages:
        return False
    states = pairs = 1
    for count in problem.counts:
        states *= count + 1
        pairs *= (count + 1) * (count + 2) // 2
        if states > _MOST_STATES or pairs > _MOST_PAIRS:
            return False
    return states * problem.pieces * (problem.pieces + 1) <= _MOST_RATES


class Reach:
    """Prepared once for a problem, then asked for several rates."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        shape = tuple(count + 1 for count in problem.counts)
        self._vectors = np.indices(shape).reshape(len(shape), -1).T  # one row a state, in flat order
        # Summed class by class, as `Problem.rate` does, so that both give the same float.
        rates = np.zeros((len(self._vectors), problem.pieces, problem.pieces + 1))
        for one in range(len(shape)):
            rates += self._vectors[:, one, None, None] * problem.rates[one][None]
        self._rates = rates
        # States within each state, without the empty one; U - V has the flat index of U less that of V.
        self._within = [
            np.flatnonzero((self._vectors[: flat + 1] <= self._vectors[flat]).all(axis=1))[1:]
            for flat in range(len(self._vectors))
        ]

    def plan(self, tokens_per_s: float) -> Stages | None:
        """A plan with at least this rate, or None: there is none."""
        pieces = self._problem.pieces
        fast = self._rates >= max(tokens_per_s, 1e-300)
        # A shorter slice from the same piece is as fast, so the true values of a row lie side by side; but for the last
        # one, since the end of the model sends nothing on.
        steps = np.arange(pieces)[:, None] + fast[:, :, :-1].sum(axis=2).T
        onward = np.full((pieces + 1, len(self._vectors)), pieces)
        onward[:-1] = np.where(fast[:, :, -1].T, pieces, steps)
        reach = np.zeros(len(self._vectors), dtype=int)
        last = np.zeros(len(self._vectors), dtype=int)
        for flat, within in enumerate(self._within):
            if flat:
                options = onward[reach[flat - within], within]
                best = options.argmax()
                reach[flat], last[flat] = options[best], within[best]
                if reach[flat] == pieces:
                    return self._walk(flat, reach, last)
        return None

    def _walk(
        self,
        flat: int,
        reach: "np.ndarray[tuple[int], np.dtype[np.int_]]",
        last: "np.ndarray[tuple[int], np.dtype[np.int_]]",
    ) -> Stages:
        stages: list[Stage] = []
        while reach[flat]:
            before = flat - last[flat]
            if reach[before] < reach[flat]:
                counts = tuple(map(int, self._vectors[last[flat]]))
                stages.append(Stage(int(reach[before]), int(reach[flat]), counts))
            flat = before
        return tuple(reversed(stages))


def stack_equal(problem: Problem, tokens_per_s: float) -> Stages | None:
    """The same question for nodes of a single class: each slice takes a known number, so the fewest nodes decide."""
    rates = problem.rates[0]
    with np.errstate(divide="ignore"):
        needed = np.ceil(tokens_per_s / rates * (1 - 1e-12))
    needed = np.where(rates > 0, np.maximum(needed, 1), np.inf)
    total, slicing = shortest(needed, problem.goal.stages)
    if total > problem.counts[0]:
        return None
    return tuple(Stage(first, end, (int(needed[first, end]),)) for first, end in pairwise(slicing))
