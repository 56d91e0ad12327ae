"""What a plan is compared with: the ways to split that need no planner. Pure.

Each gives None where a node cannot hold what falls to it. Nodes are taken in the order in which they are given, and
where there are more of them than stages they are dealt in turn, as replicas.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stagemesh.checkpoint_cuts import nearest_cuts

from .problem import Problem, Stage, Stages

__all__ = ["BASELINES", "by_memory", "dealt", "even"]


def even(problem: Problem) -> Stages | None:
    """A stage for each node, as many layers on each."""
    stages = problem.goal.stages or min(problem.pieces, sum(problem.counts))
    allowed = problem.ends[1:-1]
    cuts = nearest_cuts(allowed, problem.shape.layers, stages)
    return _in_turn(problem, [problem.ends.index(cut) for cut in cuts])


def by_memory(problem: Problem) -> Stages | None:
    """A stage for each node, parameters in proportion to memory."""
    order = _order(problem)
    stages = problem.goal.stages or min(problem.pieces, len(order))
    rooms = [min(problem.classes[one].room_bytes for one in order[nth::stages]) for nth in range(stages)]
    shape = problem.shape
    held = [shape.held_bytes(0, end) if end else 0 for end in problem.ends]
    wanted = np.cumsum(rooms) / sum(rooms) * held[-1]
    cuts = [0]
    for nth in range(stages - 1):
        # As many pieces as there are stages to come have to be left.
        choices = range(cuts[-1] + 1, problem.pieces - (stages - 2 - nth))
        cuts.append(min(choices, key=lambda piece: abs(held[piece] - wanted[nth])))
    return _in_turn(problem, [*cuts, problem.pieces])


def dealt(problem: Problem) -> Stages | None:
    """As many layers on each stage, nodes given one by one to the slowest stage they fit; best number of stages."""
    best: Stages | None = None
    order = sorted(_order(problem), key=lambda one: problem.classes[one].byte_s)
    fixed = problem.goal.stages
    for stages in [fixed] if fixed else range(1, min(problem.pieces, len(order)) + 1):
        cuts = nearest_cuts(problem.ends[1:-1], problem.shape.layers, stages)
        ends = [problem.ends.index(cut) for cut in cuts]
        rates = np.array([problem.rates[:, i, j] for i, j in pairwise(ends)])
        given = np.zeros(rates.shape, dtype=int)
        total = np.zeros(stages)
        for one in order:
            stage = int(np.where(rates[:, one] > 0, total, np.inf).argmin())
            if rates[stage, one] > 0:
                given[stage, one] += 1
                total[stage] += rates[stage, one]
        if total.min() > 0:
            plan = tuple(
                Stage(ends[nth], ends[nth + 1], tuple(map(int, given[nth]))) for nth in range(stages)
            )
            if best is None or problem.throughput(plan) > problem.throughput(best):
                best = plan
    return best


BASELINES = {
    "even split": even,
    "in proportion to memory": by_memory,
    "even, replicas dealt": dealt,
}


def _order(problem: Problem) -> list[int]:
    """The class of each node, classes taken in turn, so that unequal nodes stand mixed."""
    left = list(problem.counts)
    order: list[int] = []
    while any(left):
        for one, count in enumerate(left):
            if count:
                order.append(one)
                left[one] -= 1
    return order


def _in_turn(problem: Problem, ends: Sequence[int]) -> Stages | None:
    """Nodes dealt in turn to the stages between these pieces."""
    order = _order(problem)
    stages = len(ends) - 1
    plan = []
    for nth in range(stages):
        counts = [0] * len(problem.counts)
        for one in order[nth::stages]:
            if problem.rates[one, ends[nth], ends[nth + 1]] == 0:
                return None
            counts[one] += 1
        plan.append(Stage(ends[nth], ends[nth + 1], tuple(counts)))
    return tuple(plan)
