"""The planner's rival: the same problem as an integer programme, solved by HiGHS through scipy. Throughput only."""

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]

from stagemesh.planning import Problem

__all__ = ["by_milp"]


def by_milp(problem: Problem, seconds: float) -> float:
    """Tokens per second of the best plan found within that time; 0 without one.

    Variables: whether a slice is a stage, whether a node works on it, and the rate of the slowest stage.
    """
    nodes = [one for one, count in enumerate(problem.counts) for _ in range(count)]
    slices = [(i, j) for i in range(problem.pieces) for j in range(i + 1, problem.pieces + 1)]
    rates = np.array([[problem.rates[one, i, j] for i, j in slices] for one in nodes])
    many, width = len(nodes), len(slices)
    total = width + many * width + 1
    # No plan is faster than all nodes together, each at the quickest slice that has a given piece.
    holding = [[s for s, (i, j) in enumerate(slices) if i <= piece < j] for piece in range(problem.pieces)]
    most = float(min(rates[:, held].max(axis=1).sum() for held in holding))
    if most == 0:
        return 0.0
    rates /= most  # HiGHS is at home with numbers around 1
    rows: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    low: list[float] = []
    high: list[float] = []

    def row(entries: dict[int, float], least: float, greatest: float) -> None:
        values = np.zeros(total)
        values[list(entries)] = list(entries.values())
        rows.append(values)
        low.append(least)
        high.append(greatest)

    for at in range(problem.pieces):
        leaves = {s: 1.0 for s, (i, _) in enumerate(slices) if i == at}
        comes = {s: -1.0 for s, (_, j) in enumerate(slices) if j == at}
        row({**leaves, **comes}, float(at == 0), float(at == 0))
    for n in range(many):
        row({width + n * width + s: 1.0 for s in range(width)}, 0, 1)
    for s in range(width):
        working = {width + n * width + s: float(rates[n, s]) for n in range(many)}
        row({**working, s: -1.0, total - 1: -1.0}, -1.0, math.inf)
    top = np.ones(total)
    top[width:-1] = (rates > 0).ravel()
    answer = milp(
        c=np.append(np.zeros(total - 1), -1.0),
        constraints=LinearConstraint(np.array(rows), low, high),
        bounds=Bounds(np.zeros(total), top),
        integrality=np.append(np.ones(total - 1), 0),
        options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )
    return 0.0 if answer.x is None else float(answer.x[-1]) * most
