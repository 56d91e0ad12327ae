"""The plan of least latency among those of at least a given throughput. Exact, any number of stages or a fixed one. Pure.

A dynamic programme over (pieces covered, nodes used of each class, zones of the last stage): the least seconds to get
there. Of the nodes that could carry a slice only the minimal sets matter, those that lose the wanted rate when any one
is taken away: more nodes cost nodes and can only make the slowest route slower. The way back to the head depends on
the first stage's zones, so these are fixed from outside, one after the other.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import product

import numpy as np

from .problem import Problem, Stage, Stages

__all__ = ["Quickest"]

_MOST_WORK = 60_000_000
_MOST_MOVES = 20_000
Counts = tuple[int, ...]


class Quickest:
    """Prepared once for a problem, then asked for several rates."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._shape = tuple(count + 1 for count in problem.counts)

    @cached_property
    def _alike(self) -> bool:
        """Whether it makes no difference which zones a hop is between."""
        hop, back = self._problem.hop, self._problem.back
        return bool((hop == hop.flat[0]).all() and (back == back.flat[0]).all())

    def fits(self, tokens_per_s: float) -> bool:
        """Whether `plan` can do it in a few seconds."""
        states = 1
        for size in self._shape:
            states *= size
            if states > _MOST_WORK:
                return False
        zones = 1 if self._alike else 2 ** len(self._problem.zones) - 1
        per_move = states * zones * max(1, self._problem.goal.stages)
        most = min(_MOST_MOVES, _MOST_WORK // per_move)
        found = 0
        for first, end in self._slices():
            for _ in self._minimal(first, end, tokens_per_s):
                found += 1
                if found > most:
                    return False
        return True

    def plan(self, tokens_per_s: float) -> Stages | None:
        """The quickest plan with at least this rate (0: any); of equally quick ones, one with the fewest nodes."""
        problem = self._problem
        moves = {pair: list(self._minimal(*pair, tokens_per_s)) for pair in self._slices()}
        whole = moves.pop((0, problem.pieces))
        found: list[Stages] = (
            [] if problem.goal.stages > 1 else [(Stage(0, problem.pieces, counts),) for counts in whole]
        )
        if problem.goal.stages != 1:
            starts = {
                self._zones_of(counts) for (first, _), sets in moves.items() if first == 0 for counts in sets
            }
            found += [plan for zones in sorted(starts, key=sorted) if (plan := self._from(zones, moves))]
        return min(found, key=lambda plan: (problem.latency(plan), _nodes(plan)), default=None)

    def _slices(self) -> Iterator[tuple[int, int]]:
        pieces = self._problem.pieces
        return ((first, end) for first in range(pieces) for end in range(first + 1, pieces + 1))

    def _zones_of(self, counts: Counts) -> frozenset[int]:
        return frozenset((0,)) if self._alike else self._problem.zones_of(counts)

    def _minimal(self, first: int, end: int, tokens_per_s: float) -> Iterator[Counts]:
        """Sets of nodes that carry the slice at that rate, and do not without any one of them."""
        rates = self._problem.rates[:, first, end]
        order = [int(one) for one in np.argsort(-rates, kind="stable") if rates[one] > 0]
        counts = [0] * len(rates)
        wanted = max(tokens_per_s, 1e-300) * (1 - 1e-12)

        def add(index: int, missing: float) -> Iterator[Counts]:
            # Fastest class first: the last node added is the slowest, and without it the rate was missed.
            if missing <= 0:
                yield tuple(counts)
                return
            if index == len(order):
                return
            one = order[index]
            for count in range(self._problem.counts[one] + 1):
                counts[one] = count
                left = missing - count * float(rates[one])
                yield from add(index + 1, left)
                if left <= 0:
                    break
            counts[one] = 0

        return add(0, wanted)

    def _from(self, start: frozenset[int], moves: dict[tuple[int, int], list[Counts]]) -> Stages | None:
        """The quickest plan of two stages or more whose first stage is in exactly these zones."""
        problem = self._problem
        sets = [start, *sorted({self._zones_of(c) for m in moves.values() for c in m} - {start}, key=sorted)]
        place = {zones: index for index, zones in enumerate(sets)}
        hop = np.array([[_slowest(problem.hop, a, b) for b in sets] for a in sets])
        back = np.array([_slowest(problem.back, one, start) for one in sets])
        # [pieces covered, stages so far (only where their number is fixed), zones of the last, nodes used...]
        fixed = problem.goal.stages
        size = (problem.pieces + 1, fixed + 1, len(sets), *self._shape)
        least = np.full(size, np.inf)
        chosen = np.full(size, -1, dtype=np.int32)
        steps: list[tuple[int, int, Counts]] = []
        here, onward = (slice(0, -1), slice(1, None)) if fixed else (slice(None), slice(None))
        for first in range(problem.pieces):
            # Seconds until the activations are there, for each set of zones that a next stage may be in.
            arrived = (
                least[first, :, :, None] + hop.reshape(1, len(sets), len(sets), *[1] * len(self._shape))
            ).min(axis=1)
            for end in range(first + 1, problem.pieces + 1):
                for counts in moves.get((first, end), ()):
                    zones = self._zones_of(counts)
                    if first == 0 and zones != start:
                        continue
                    seconds = problem.pass_s(Stage(first, end, counts))
                    target = (end, onward, place[zones], *(slice(n, None) for n in counts))
                    if first == 0:
                        target = (end, slice(min(fixed, 1), min(fixed, 1) + 1), place[zones], *counts)
                        total = np.array([seconds])
                    else:
                        rest = (slice(0, size - n) for size, n in zip(self._shape, counts, strict=True))
                        total = arrived[(here, place[zones], *rest)] + seconds
                    better = total < least[target]
                    if better.any():
                        least[target] = np.where(better, total, least[target])
                        chosen[target] = np.where(better, len(steps), chosen[target])
                        steps.append((first, end, counts))
        total = least[-1, -1] + back.reshape(-1, *[1] * len(self._shape))
        if not np.isfinite(total.min()):
            return None
        quick = np.argwhere(total <= total.min() * (1 + 1e-12))
        state = min((tuple(map(int, one)) for one in quick), key=lambda one: sum(one[1:]))
        return self._walk(state, least, chosen, steps, hop)

    def _walk(
        self,
        state: tuple[int, ...],
        least: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
        chosen: "np.ndarray[tuple[int, ...], np.dtype[np.int32]]",
        steps: list[tuple[int, int, Counts]],
        hop: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    ) -> Stages:
        """Backwards from the last stage's (zones, nodes used...)."""
        stages: list[Stage] = []
        end, nth = self._problem.pieces, self._problem.goal.stages
        while end:
            zones, used = state[0], state[1:]
            first, _, counts = steps[chosen[(end, nth, *state)]]
            stages.append(Stage(first, end, counts))
            used = tuple(a - b for a, b in zip(used, counts, strict=True))
            end, nth = first, max(0, nth - 1)
            if end:
                before = least[(end, nth, slice(None), *used)] + hop[:, zones]
                state = (int(before.argmin()), *used)
        return tuple(reversed(stages))


def _slowest(
    table: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", one: frozenset[int], other: frozenset[int]
) -> float:
    return max(float(table[a, b]) for a, b in product(one, other))


def _nodes(plan: Stages) -> int:
    return sum(sum(stage.counts) for stage in plan)
