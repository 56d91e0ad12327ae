"""Plans within a latency limit where exact search would take too long. Pure, without a promise of the optimum.

One class a stage: a shortest path over (pieces covered, zone of the last stage), in which a slice costs its seconds plus
a fine for its nodes. Classes of which more nodes are asked for than there are get dearer until the path can be had.
Where no fine was needed the path is the quickest there is among such plans.
"""

import numpy as np

from .problem import Floats, Problem, Stage, Stages

__all__ = ["swift", "top_up"]

_ROUNDS = 16


def swift(problem: Problem, tokens_per_s: float) -> Stages | None:
    """The quickest plan found with at least this rate (0: any); None when none was found."""
    counts = np.array(problem.counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.maximum(np.ceil(tokens_per_s / problem.rates * (1 - 1e-12)), 1)
    can = (problem.rates > 0) & (needed <= counts[:, None, None])
    needed = np.where(can, needed, 0)
    seconds = np.where(can, problem.time, np.inf)
    fines = np.zeros(len(counts))
    best: Stages | None = None
    for nth in range(_ROUNDS):
        plan = _path(problem, seconds + fines[:, None, None] * needed, needed)
        if plan is None:
            return best
        used = np.array([stage.counts for stage in plan]).sum(axis=0)
        if (used <= counts).all():
            if best is None or problem.latency(plan) < problem.latency(best):
                best = plan
            if nth == 0:
                return best
        step = problem.latency(plan) / len(plan) / (1 + nth) ** 0.5
        fines = np.maximum(0, fines + step * (used - counts) / counts / np.maximum(1, used.max()) * 4)
    return best


def _path(problem: Problem, cost: Floats, needed: Floats) -> Stages | None:
    zone_of = np.array(problem.zone_of)
    zones, pieces = len(problem.zones), problem.pieces
    cheapest = np.full((zones, pieces, pieces + 1), np.inf)
    which = np.zeros(cheapest.shape, dtype=int)
    for zone in range(zones):
        members = np.flatnonzero(zone_of == zone)
        chosen = cost[members].argmin(axis=0)
        which[zone] = members[chosen]
        cheapest[zone] = np.take_along_axis(cost[members], chosen[None], axis=0)[0]
    fixed = problem.goal.stages
    # [stages so far (where their number is fixed), pieces covered, zone of the last]
    layers = fixed + 1 if fixed else 1
    total = np.full((layers, pieces + 1, zones), np.inf)
    arrived = np.full((layers, pieces, zones), np.inf)
    came = np.zeros((layers, pieces + 1, zones), dtype=int)
    arrived[0, 0] = 0.0
    for end in range(1, pieces + 1):
        # [stages, first, zone]
        options = arrived[:, :end] + cheapest[:, :end, end].T[None]
        least, origin = options.min(axis=1), options.argmin(axis=1)
        if fixed:
            total[1:, end], came[1:, end] = least[:-1], origin[:-1]
        else:
            total[:, end], came[:, end] = least, origin
        if end < pieces:
            arrived[:, end] = (total[:, end, :, None] + problem.hop[None]).min(axis=1)
    if not np.isfinite(total[-1, pieces].min()):
        return None
    stages: list[Stage] = []
    end, nth, zone = pieces, layers - 1, int(total[-1, pieces].argmin())
    while end:
        first = int(came[nth, end, zone])
        counts = [0] * len(problem.classes)
        one = which[zone, first, end]
        counts[one] = int(needed[one, first, end])
        stages.append(Stage(first, end, tuple(counts)))
        nth, end = max(0, nth - 1), first
        if end:
            zone = int((total[nth, end] + problem.hop[:, zone]).argmin())
    return tuple(reversed(stages))


def top_up(problem: Problem, plan: Stages, latency_s: float) -> Stages:
    """Nodes left over go to the slowest stage, one by one, as far as they fit there and the limit allows."""
    stages = list(plan)
    left = np.array(problem.counts) - np.array([stage.counts for stage in stages]).sum(axis=0)
    while True:
        slow = min(range(len(stages)), key=lambda nth: problem.rate(stages[nth]))
        stage = stages[slow]
        options = np.where(left > 0, problem.rates[:, stage.first, stage.end], 0.0)
        for one in np.argsort(-options, kind="stable"):
            if options[one] <= 0:
                return tuple(stages)
            counts = list(stage.counts)
            counts[one] += 1
            stages[slow] = Stage(stage.first, stage.end, tuple(counts))
            if not latency_s or problem.latency(tuple(stages)) <= latency_s:
                left[one] -= 1
                break
            stages[slow] = stage
        else:
            return tuple(stages)
