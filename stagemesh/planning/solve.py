"""Picks the solver, and says whether what it returns is the optimum. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from .bound import find_bound
from .orders import improve
from .problem import Problem, Stages
from .quickest import Quickest
from .reach import Reach, fits_reach, stack_equal
from .swift import swift, top_up

__all__ = ["Solution", "solve"]

# Plans whose rates differ by less than this part are equal.
STEP = 1e-9
# Price updates where nothing but the bound says how good a plan is.
_MORE_ROUNDS, _FEWEST_ROUNDS, _MOST_ROUNDS = 6_000, 150, 500
# Price updates where a search will find the optimum anyway.
_FEW_ROUNDS = 60


@dataclass(frozen=True)
class Solution:
    """`stages` is empty when there is no plan; `why` then says so in a line.

    `optimal`: no plan is better by the goal. `bound` is what no plan exceeds (tokens per second), with or without it.
    """

    stages: Stages
    optimal: bool
    bound: float
    why: str = ""


def solve(problem: Problem) -> Solution:
    """The best plan by the problem's goal; exact wherever the search is small enough."""
    found = _solve(problem)
    return replace(found, optimal=False) if problem.merged else found


def _solve(problem: Problem) -> Solution:
    goal = problem.goal
    exact = None if goal.objective == "latency" or problem.merged else _exact(problem)
    many = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, _MORE_ROUNDS // len(problem.classes)))
    bound = find_bound(problem, _FEW_ROUNDS if exact or goal.objective == "latency" else many)
    if not bound.tokens_per_s:
        return Solution((), True, 0.0, _why_none(problem))
    if goal.objective == "latency":
        return _quickest(problem, bound.tokens_per_s)
    if exact is None:
        found, optimal = improve(problem, bound) or swift(problem, 0.0), False
    else:
        first = improve(problem, bound, search=False)
        found, optimal = _maximise(problem, exact, first, bound.tokens_per_s), True
    if found is None:
        why = "no plan was found: too few nodes for the memory needed"
        return Solution((), optimal, bound.tokens_per_s, why)
    most = problem.throughput(found) if optimal else bound.tokens_per_s
    limit = goal.latency_ms / 1e3 or math.inf
    return _within(problem, Solution(found, optimal, most), limit)


def _exact(problem: Problem) -> Callable[[float], Stages | None] | None:
    """What answers "is there a plan of at least this rate?" exactly and soon enough, without a latency limit."""
    if len(problem.classes) == 1:
        return lambda rate: stack_equal(problem, rate)
    if fits_reach(problem):
        return Reach(problem).plan
    quickest = Quickest(problem)
    if problem.goal.stages and quickest.fits(find_bound(problem, 30).tokens_per_s / 2):
        return quickest.plan
    return None


def _maximise(
    problem: Problem, plan: Callable[[float], Stages | None], start: Stages | None, high: float
) -> Stages | None:
    """The plan of the highest rate; `plan(rate)` gives one of at least that rate or None, `high` exceeds every rate."""
    best = start
    low = problem.throughput(best) if best else 0.0
    while True:
        # Just above what is known, to end soon where that is the best, or in the middle.
        close = high <= low * (1 + 1e-6)
        for target in [low * (1 + STEP)] if close else [low * (1 + STEP), (low + high) / 2]:
            found = plan(target or high * 1e-12)
            if found is None:
                if target <= low * (1 + STEP):
                    return best
                high = target
            elif best is None or problem.throughput(found) > low:
                best, low = found, max(target, problem.throughput(found))


def _within(problem: Problem, fastest: Solution, limit_s: float) -> Solution:
    """Of the plans within the latency limit one of the highest rate, and of those the quickest known."""
    quickest = Quickest(problem)
    rate = problem.throughput(fastest.stages)
    if fastest.optimal and quickest.fits(rate * (1 - STEP)):
        sooner = quickest.plan(rate * (1 - STEP)) or fastest.stages
        if problem.latency(sooner) <= limit_s:
            return Solution(sooner, True, fastest.bound)
    elif problem.latency(fastest.stages) <= limit_s:
        return fastest
    exact = fastest.optimal and all(quickest.fits(rate * part) for part in (0.0, 0.25, 0.5, 0.75, 1.0))
    ask = quickest.plan if exact else lambda target: swift(problem, target)

    def allowed(target: float) -> Stages | None:
        found = ask(target)
        return found if found is not None and problem.latency(found) <= limit_s else None

    start = allowed(0.0)
    if start is None:
        least = ask(0.0)
        soonest = (
            f"{problem.latency(least) * 1e3:.3g} ms is the least{'' if exact else ' found'}"
            if least
            else "there is no plan"
        )
        return Solution(
            (), exact, fastest.bound, f"latency_ms: {limit_s * 1e3:g} ms cannot be kept: {soonest}"
        )
    if exact:
        best = _maximise(problem, allowed, start, fastest.bound * (1 + STEP)) or start
        return Solution(
            allowed(problem.throughput(best) * (1 - STEP)) or best, True, problem.throughput(best)
        )
    best = top_up(problem, start, limit_s)
    low, high = problem.throughput(best), fastest.bound
    for _ in range(12):
        target = (low + high) / 2
        found = allowed(target)
        if found is None:
            high = target
        else:
            best = max(best, top_up(problem, found, limit_s), key=problem.throughput)
            low = max(target, problem.throughput(best))
        if low >= high:
            break
    return Solution(best, False, fastest.bound)


def _quickest(problem: Problem, bound: float) -> Solution:
    wanted = problem.goal.tokens_per_s
    search = Quickest(problem)
    optimal = search.fits(wanted)
    found = search.plan(wanted) if optimal else swift(problem, wanted)
    if found is None:
        return Solution(
            (), optimal, bound, f"tokens_per_s: no plan reaches {wanted:g}; at most {bound:.4g} can be"
        )
    return Solution(found, optimal, bound)


def _why_none(problem: Problem) -> str:
    """Of the layers that no node can take, the first."""
    for piece in range(problem.pieces):
        if (problem.rates[:, piece, piece + 1] == 0).all():
            first, end = problem.ends[piece], problem.ends[piece + 1]
            need = problem.shape.held_bytes(first, end)
            most = max(one.room_bytes for one in problem.classes)
            return (
                f"no node may or can hold layers {first}..{end - 1}, which may not be parted: {need} bytes as stored, "
                f"and the largest node has room for {most:.0f} (headroom {problem.goal.headroom:g} taken off)"
            )
    return "the nodes cannot hold the model in so many stages"
