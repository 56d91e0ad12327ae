"""The planner against every plan there is, and against an integer programme."""

from dataclasses import replace
from functools import partial
from random import Random

import pytest

from bench.milp import by_milp
from stagemesh.planning import Goal, Speed, build, solve
from stagemesh.planning.bound import find_bound
from stagemesh.planning.classes import classes_of
from stagemesh.planning.orders import improve
from stagemesh.planning.problem import Problem
from stagemesh.planning.quickest import Quickest
from stagemesh.planning.reach import Reach
from stagemesh.planning.swift import swift, top_up
from tests.registry.plan_cases import Case, best_by_enumeration, case

SMALL = 500
MEDIUM = 100


def small(seed: int) -> Case:
    rng = Random(seed)
    return case(rng, layers=rng.randint(2, 6), nodes=rng.randint(1, 4))


@pytest.mark.parametrize("block", range(10))
def test_small_cases_are_solved_as_well_as_by_trying_every_plan(block: int) -> None:
    for seed in range(block * SMALL // 10, (block + 1) * SMALL // 10):
        one = small(seed)
        expected = best_by_enumeration(one)
        if not any(one.goal.allows(node) for node in one.nodes):
            assert expected is None
            continue
        problem = build(one.shape, one.nodes, one.links, one.goal)
        found = solve(problem)
        assert found.optimal, seed
        if expected is None:
            assert not found.stages, seed
            assert found.why
            continue
        assert found.stages, (seed, found.why)
        problem.check(found.stages)
        if one.goal.objective == "latency":
            assert problem.throughput(found.stages) >= one.goal.tokens_per_s * (1 - 1e-9), seed
        else:
            assert problem.throughput(found.stages) == pytest.approx(expected[0], rel=1e-7), seed
        assert problem.latency(found.stages) == pytest.approx(expected[1], rel=1e-7), seed


def test_the_small_cases_are_of_every_kind() -> None:
    cases = [small(seed) for seed in range(SMALL)]
    answers = [best_by_enumeration(one) for one in cases[:150]]
    assert 15 < sum(answer is None for answer in answers) < 110
    assert sum(one.goal.objective == "latency" for one in cases) > 100
    assert sum(bool(one.goal.latency_ms) for one in cases) > 50
    assert sum(bool(one.goal.pins) for one in cases) > 100
    assert sum(bool(one.goal.stages) for one in cases) > 100


def medium(seed: int) -> Problem:
    rng = Random(1000 + seed)
    one = case(rng, layers=rng.randint(7, 10), nodes=rng.randint(5, 6), goal=Goal(batch=8))
    return build(one.shape, one.nodes, one.links, one.goal)


def test_medium_cases_are_never_worse_than_an_integer_programme() -> None:
    better = 0
    for seed in range(MEDIUM):
        problem = medium(seed)
        found = solve(problem)
        ours = problem.throughput(found.stages) if found.stages else 0.0
        theirs = by_milp(problem, 0.1)
        assert ours >= theirs * (1 - 1e-5), seed
        better += ours > theirs * (1 + 1e-5)
    assert better > 0


def test_the_integer_programme_given_the_time_finds_the_same() -> None:
    """It is a rival: with time enough it reaches our rate, and so none of the comparisons is with a broken one."""
    equal = 0
    for seed in range(8):
        rng = Random(2000 + seed)
        one = case(rng, layers=6, nodes=4, goal=Goal())
        problem = build(one.shape, one.nodes, one.links, one.goal)
        found = solve(problem)
        ours = problem.throughput(found.stages) if found.stages else 0.0
        assert by_milp(problem, 30.0) == pytest.approx(ours, rel=1e-4)
        equal += ours > 0
    assert equal > 3


def test_two_exact_searches_agree() -> None:
    for seed in range(40):
        problem = medium(seed)
        reach, quickest = Reach(problem), Quickest(problem)
        top = find_bound(problem).tokens_per_s
        for part in (0.2, 0.6, 0.8, 0.9, 0.95, 1.01):
            plans = reach.plan(top * part), quickest.plan(top * part)
            assert (plans[0] is None) == (plans[1] is None), (seed, part)
            for plan in filter(None, plans):
                problem.check(plan)
                assert problem.throughput(plan) >= top * part * (1 - 1e-9)


def test_nothing_above_the_answer_can_be_found() -> None:
    solved = 0
    for seed in range(40):
        problem = medium(seed)
        found = solve(problem)
        if found.stages:
            assert Reach(problem).plan(problem.throughput(found.stages) * (1 + 1e-6)) is None, seed
            first = improve(problem, find_bound(problem), search=False)
            solved += first is None or problem.throughput(first) < problem.throughput(found.stages) * (
                1 - 1e-6
            )
    # Not only those whose answer was found before the search began.
    assert solved > 5


def test_the_bound_holds_for_unlike_nodes_that_were_put_into_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        rng = Random(3000 + seed)
        one = case(rng, layers=7, nodes=6, goal=Goal())
        nodes = [
            replace(node, speed=Speed({8: rng.uniform(1, 9)}, overhead_ms=rng.uniform(0, 1)), zone="a")
            for node in one.nodes
        ]
        exact = build(one.shape, nodes, one.links, one.goal)
        monkeypatch.setattr("stagemesh.planning.problem.classes_of", partial(classes_of, most=2))
        merged = build(one.shape, nodes, one.links, one.goal)
        monkeypatch.undo()
        assert merged.merged
        assert len(merged.classes) == 2
        best, found = solve(exact), solve(merged)
        if best.stages:
            assert exact.throughput(best.stages) <= found.bound, seed
        if found.stages:
            assert not found.optimal
            assert merged.throughput(found.stages) <= exact.throughput(best.stages) * (1 + 1e-9)


def test_the_bound_is_one_and_the_search_for_large_problems_comes_close() -> None:
    shares = []
    for seed in range(12):
        problem = medium(seed)
        bound = find_bound(problem)
        best = solve(problem)
        if not best.stages:
            continue
        good = improve(problem, bound)
        assert good is not None
        problem.check(good)
        assert problem.throughput(good) <= problem.throughput(best.stages) * (1 + 1e-9)
        assert problem.throughput(best.stages) <= bound.tokens_per_s
        shares.append(problem.throughput(good) / problem.throughput(best.stages))
    assert min(shares) > 0.75
    assert sum(shares) / len(shares) > 0.95


def test_quick_plans_without_a_proof_are_plans_and_near_the_quickest() -> None:
    ratios = []
    for seed in range(25):
        problem = medium(seed)
        best = Quickest(problem).plan(0.0)
        found = swift(problem, 0.0)
        if best is None:
            assert found is None
            continue
        if found is None:
            continue
        problem.check(found)
        ratios.append(problem.latency(found) / problem.latency(best))
        more = top_up(problem, found, problem.latency(found) * 1.2)
        problem.check(more)
        assert problem.throughput(more) >= problem.throughput(found)
        assert problem.latency(more) <= problem.latency(found) * 1.2
    assert len(ratios) > 10
    assert min(ratios) > 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.15
