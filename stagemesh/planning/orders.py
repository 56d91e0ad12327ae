"""Good plans where exact search would take too long: many nodes of many classes. Pure.

Giving unequal nodes to stages so that the slowest stage is fastest is NP-hard even for given cuts (it is machine
covering), so nothing here promises the optimum. But let the nodes stand in a row, and let each stage take the next few of
them: then cuts and groups are found exactly, by the fewest nodes from the row's beginning that carry the model up to
each piece. Every plan belongs to some row, so what is searched is the row: first the classes in a few sensible orders,
then with parts of it moved and exchanged. How far the result can be from the optimum is known by `bound`.
"""

from collections.abc import Sequence
from itertools import groupby
from random import Random

import numpy as np
import numpy.typing as npt

from .bound import Bound
from .problem import Problem, Stage, Stages

__all__ = ["Row", "improve"]

Ints = npt.NDArray[np.int_]
# A row of nodes, as (class, how many) in a line.
Runs = list[tuple[int, int]]
_BISECTIONS = 12
# Rows tried after the first ones; each costs a look at every piece.
_TRIES_TIMES_PIECES, _MOST_TRIES = 20_000, 400
_GAIN = 1e-3


def improve(problem: Problem, bound: Bound, *, search: bool = True, seed: int = 0) -> Stages | None:
    """The best plan found without a latency limit; None when none was found. The same for the same seed.

    Without `search` only the first few rows are looked at.
    """
    row = Row(problem)
    best: Stages | None = None
    rate = 0.0
    for start in _starts(problem):
        better = row.plan(start, rate * (1 + _GAIN) or bound.tokens_per_s * 1e-9)
        if better is None:
            continue
        best, rate = better, problem.throughput(better)
        high = bound.tokens_per_s
        for _ in range(_BISECTIONS):
            target = (rate + high) / 2
            better = row.plan(start, target)
            if better is None:
                high = target
            else:
                best, rate = better, problem.throughput(better)
    if best is None or not search:
        return best
    rng = Random(seed)
    runs = _row_of(problem, best)
    tries = min(_MOST_TRIES, _TRIES_TIMES_PIECES // problem.pieces // max(1, problem.goal.stages))
    for _ in range(tries):
        if rate * (1 + _GAIN) > bound.tokens_per_s:
            break
        moved = _moved(runs, rng)
        better = row.plan(moved, rate * (1 + _GAIN))
        if better is not None:
            best, rate, runs = better, problem.throughput(better), _row_of(problem, better)
    return best


class Row:
    """Finds the plans of rows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        possible = np.asarray((problem.rates > 0).any(axis=0))
        # One past the last piece that any node can hold, from each piece.
        self._furthest = problem.pieces + 1 - possible[:, ::-1].argmax(axis=1)

    def plan(self, runs: Runs, tokens_per_s: float) -> Stages | None:
        """The plan along this row with at least that rate and the fewest nodes; None when there is none."""
        problem = self._problem
        members = np.array([one for one, _ in runs])
        ends = np.cumsum([count for _, count in runs])
        nodes = int(ends[-1])
        fixed = problem.goal.stages
        layers = fixed + 1 if fixed else 1
        # Nodes used to reach a piece in so many stages (where their number is fixed), and from which piece.
        used = np.full((layers, problem.pieces + 1), nodes + 1)
        came = np.zeros(used.shape, dtype=int)
        used[0, 0] = 0
        for first in range(problem.pieces):
            for nth in range(layers - 1 if fixed else 1):
                start = int(used[nth, first])
                if start >= nodes:
                    continue
                slices = slice(first + 1, int(self._furthest[first]))
                taken = start + self._needed(members, ends, start, first, slices, tokens_per_s)
                onward = used[nth + 1 if fixed else 0, slices]
                better = taken < onward
                onward[better] = taken[better]
                came[nth + 1 if fixed else 0, slices][better] = first
        if used[-1, -1] > nodes:
            return None
        stages: list[Stage] = []
        row = np.repeat(members, np.diff(ends, prepend=0))
        end, nth = problem.pieces, layers - 1
        while end:
            first = int(came[nth, end])
            before = max(0, nth - 1)
            stages.append(self._stage(first, end, row[used[before, first] : used[nth, end]]))
            end, nth = first, before
        return tuple(reversed(stages))

    def _needed(
        self, members: Ints, ends: Ints, start: int, first: int, slices: slice, tokens_per_s: float
    ) -> Ints:
        """How many nodes from `start` on carry each slice; more than there are where they do not."""
        run = int(np.searchsorted(ends, start, side="right"))
        before = np.concatenate([[start], ends[run:-1]])
        rates = self._problem.rates[members[run:], first, slices]
        given = rates * (ends[run:] - before)[:, None]
        total = given.cumsum(axis=0)
        enough = total >= tokens_per_s
        last = enough.argmax(axis=0)
        columns = np.arange(rates.shape[1])
        missing = tokens_per_s - (total[last, columns] - given[last, columns])
        with np.errstate(divide="ignore", invalid="ignore"):
            own = np.ceil(missing / rates[last, columns] * (1 - 1e-12))
        needed = before[last] - start + np.minimum(np.maximum(own, 1), (ends[run:] - before)[last])
        return np.where(enough[-1], needed, ends[-1] + 1).astype(int)

    def _stage(self, first: int, end: int, group: Ints) -> Stage:
        """Without the nodes that cannot hold the slice: they only stood in between."""
        counts = np.bincount(group, minlength=len(self._problem.classes))
        counts[self._problem.rates[:, first, end] == 0] = 0
        return Stage(first, end, tuple(map(int, counts)))


def _starts(problem: Problem) -> list[Runs]:
    """Classes by room, by speed, by zone and speed, each both ways."""
    members = range(len(problem.classes))
    speed = [1 / (one.overhead_s + one.byte_s * problem.shape.mean_layer_bytes) for one in problem.classes]
    keys = (
        lambda one: (problem.classes[one].room_bytes, speed[one]),
        lambda one: (speed[one], problem.classes[one].room_bytes),
        lambda one: (problem.classes[one].zone, speed[one]),
        # Those that a pin keeps away from the first layers stand at the end.
        lambda one: (problem.classes[one].pins, speed[one]),
    )
    rows = []
    for key in keys:
        order = sorted(members, key=key)
        rows += [
            [(one, problem.counts[one]) for one in order],
            [(one, problem.counts[one]) for one in order[::-1]],
        ]
    return rows


def _row_of(problem: Problem, plan: Stages) -> Runs:
    """The row of a plan: its groups in order, then who is left."""
    left = list(problem.counts)
    runs: Runs = []
    for stage in plan:
        for one, count in enumerate(stage.counts):
            if count:
                runs.append((one, count))
                left[one] -= count
    return _joined(runs + [(one, count) for one, count in enumerate(left) if count])


def _joined(runs: Sequence[tuple[int, int]]) -> Runs:
    return [(one, sum(count for _, count in group)) for one, group in groupby(runs, key=lambda run: run[0])]


def _moved(runs: Runs, rng: Random) -> Runs:
    """Another row: two runs exchanged, or a part of one put elsewhere, or two parts exchanged."""
    changed = list(runs)
    one, other = rng.randrange(len(changed)), rng.randrange(len(changed))
    kind = rng.random()
    if kind < 0.3:
        changed[one], changed[other] = changed[other], changed[one]
        return _joined(changed)
    if kind < 0.45:
        first, last = min(one, other), max(one, other)
        return _joined([*changed[:first], *reversed(changed[first : last + 1]), *changed[last + 1 :]])
    first, last = min(one, other), max(one, other)
    a, b = changed[first], changed[last]
    part_a, part_b = _part(a[1], rng), _part(b[1], rng)
    if kind < 0.6 or first == last:
        put = rng.randrange(len(changed) + 1)
        changed[first] = (a[0], a[1] - part_a)
        changed.insert(put, (a[0], part_a))
    else:
        swapped_a = [(b[0], part_b), (a[0], a[1] - part_a)]
        swapped_b = [(a[0], part_a), (b[0], b[1] - part_b)]
        changed[last : last + 1] = swapped_b
        changed[first : first + 1] = swapped_a
    return _joined([run for run in changed if run[1]])


def _part(count: int, rng: Random) -> int:
    """Some of them: often one, sometimes all."""
    return 1 if rng.random() < 0.5 else rng.randint(1, count)
