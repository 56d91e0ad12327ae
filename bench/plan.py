"""Plans beside simpler splits on fleets of unequal nodes, and how long planning takes for 128 layers and 1,000 nodes.

Rates are those of the planner's model of a pipeline (`stagemesh/planning/problem.py`), not of running meshes: what is
compared is the split, on the same nodes. A round is another draw of every fleet's nodes; its ratio is the geometric mean
over the fleets. Of the planner itself the processor time is measured, of its one thread.
"""

import time
from math import exp, log
from random import Random
from statistics import fmean

from bench.milp import by_milp
from bench.options import Options, say
from bench.paired import paired_ratio
from bench.plan_fleets import FLEETS, Fleet
from bench.result import Bound, Result, Series
from stagemesh.planning import Goal, Link, Links, ModelShape, Node, Problem, Speed, build, solve
from stagemesh.planning.baselines import BASELINES

_KEYS = {
    "even split": "plan_vs_even_split",
    "in proportion to memory": "plan_vs_memory_split",
    "even, replicas dealt": "plan_vs_dealt_replicas",
}
_LIMIT_S = 2.0
_RIVAL_S = 2.0


async def run(options: Options) -> Result:
    """All fleets, the integer programme, and the times."""
    result = Result(
        "plan", "tokens/s of plans and of simpler splits on the same unequal nodes, by the planner's model"
    )
    rounds = options.times(9)
    # [baseline][round]: the plan's rate over the baseline's, one for each fleet in which both are.
    gains: dict[str, list[list[float]]] = {name: [[] for _ in range(rounds)] for name in BASELINES}
    for fleet in FLEETS:
        _compare(fleet, rounds, result, gains)
    for name, key in _KEYS.items():
        means = [fmean(map(log, gain)) for gain in gains[name] if gain]
        if means:
            result.ratio(key, paired_ratio([exp(mean) for mean in means], [1.0] * len(means)), Bound(1.0))
    _rival(options, result)
    for title, nodes in (
        ("1,000 equal nodes", _many(1, 1)),
        ("1,000 nodes of 24 kinds", _many(24, 2)),
        ("1,000 unlike nodes", _many(1000, 3)),
    ):
        _time(title, nodes, options.times(5), result)
    return result


def _compare(fleet: Fleet, rounds: int, result: Result, gains: dict[str, list[list[float]]]) -> None:
    say(fleet.title)
    rates: dict[str, list[float]] = {"plan": []}
    missing = dict.fromkeys(BASELINES, 0)
    limit_s = fleet.goal.latency_ms / 1e3
    for seed in range(rounds):
        problem = build(fleet.shape, fleet.nodes(seed), fleet.links, fleet.goal)
        found = solve(problem)
        if not found.stages:
            result.notes.append(f"{fleet.title}: no plan in draw {seed}")
            continue
        rate = problem.throughput(found.stages)
        rates["plan"].append(rate)
        for name, make in BASELINES.items():
            other = make(problem)
            if other is None or (limit_s and problem.latency(other) > limit_s):
                missing[name] += 1
                continue
            rates.setdefault(name, []).append(problem.throughput(other))
            gains[name][seed].append(rate / problem.throughput(other))
    result.series += [
        Series(fleet.title, name, "tokens/s", values) for name, values in rates.items() if values
    ]
    for name, count in missing.items():
        if count:
            why = "does not fit, or is too slow," if limit_s else "does not fit"
            result.notes.append(f"{fleet.title}: {name} {why} in {count} of {rounds} draws")


def _rival(options: Options, result: Result) -> None:
    """The integer programme, two seconds a case: it may not find a better plan."""
    say("integer programme")
    ours, theirs = [], []
    for seed in range(options.times(20)):
        problem = _medium(seed)
        found = solve(problem)
        rival = by_milp(problem, _RIVAL_S)
        if found.stages and rival:
            ours.append(problem.throughput(found.stages))
            theirs.append(rival)
    if ours:
        result.ratio("plan_vs_integer_programme", paired_ratio(ours, theirs), Bound(1 - 1e-5))
        result.notes.append(
            f"integer programme, {_RIVAL_S:g} s a case: better than the plan in "
            f"{sum(b > a * (1 + 1e-5) for a, b in zip(ours, theirs, strict=True))}, equal in "
            f"{sum(abs(b - a) <= a * 1e-5 for a, b in zip(ours, theirs, strict=True))} of {len(ours)}"
        )


def _medium(seed: int) -> Problem:
    rng = Random(seed)
    shape = ModelShape("m", [rng.randint(5, 15) * 10**6 for _ in range(10)], 10**7, 2 * 10**7, hidden_size=64)
    nodes = [
        Node(f"n{nth}", rng.randint(40, 160) * 10**6, Speed({8: rng.uniform(1, 9)}, overhead_ms=0.2))
        for nth in range(6)
    ]
    return build(shape, nodes, Links(), Goal())


def _many(kinds: int, seed: int) -> list[Node]:
    rng = Random(seed)
    made = [
        (rng.uniform(8, 80), rng.uniform(200, 2000), rng.uniform(20, 200), rng.choice("abc"))
        for _ in range(kinds)
    ]
    return [
        Node(f"n{nth}", int(memory * 10**9), Speed({}, tflops * 1e3, gbps, 0.3), "cuda", zone)
        for nth in range(1000)
        for memory, gbps, tflops, zone in [made[nth % kinds]]
    ]


def _time(title: str, nodes: list[Node], rounds: int, result: Result) -> None:
    say(f"planning, {title}")
    shape = ModelShape("128 layers", [10**9] * 128, 10**9, 10**9, hidden_size=8192, stored_dtype="BF16")
    links = Links(Link(0.2, 25), Link(8, 5))
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        problem = build(shape, nodes, links, Goal())
        found = solve(problem)
        seconds.append(time.process_time() - started)
    result.series.append(Series("128 layers: time to plan", title, "s", seconds))
    key = "planning_vs_2_s_" + title.partition(" ")[2].replace(" ", "_")
    result.ratio(key, paired_ratio(seconds, [_LIMIT_S] * rounds), Bound(1.0, at_most=True))
    rate = problem.throughput(found.stages)
    proven = "no plan is better" if found.optimal else f"{rate / found.bound:.1%} of what no plan can exceed"
    result.notes.append(f"{title}: {len(problem.classes)} classes, {len(found.stages)} stages, {proven}")
