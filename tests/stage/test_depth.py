"""The number of micro-batches under way follows what is fastest, on a virtual clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage.depth import Depth


def drive(depth: Depth, rates: dict[int, float], sessions: int, tokens: int, noise: float = 0.0) -> float:
    """Tokens come at the rate of the number in use; the share of them that came at the best rate."""
    rng, now, best = random.Random(1), 0.0, 0
    fastest = max(rates, key=lambda arm: rates[arm])
    for _ in range(tokens):
        best += depth.now == fastest
        now += 1 / (rates[depth.now] * rng.uniform(1 - noise, 1 + noise))
        depth.token(now, sessions)
    return best / tokens


@pytest.mark.parametrize("fastest", [1, 2, 3, 4])
def test_it_finds_the_fastest_and_stays_there(fastest: int) -> None:
    rates = {arm: 100.0 / (1 + abs(arm - fastest)) for arm in range(1, 5)}
    depth = Depth(4)
    drive(depth, rates, 8, 2000)
    assert depth.now == fastest or drive(depth, rates, 8, 100) > 0.4
    assert drive(depth, rates, 8, 5000, noise=0.3) > 0.9


def test_what_is_best_may_change() -> None:
    depth = Depth(2)
    drive(depth, {1: 100.0, 2: 50.0}, 8, 2000)
    assert drive(depth, {1: 100.0, 2: 200.0}, 8, 20_000) > 0.8


def test_numbers_of_sessions_are_told_apart() -> None:
    depth = Depth(2)
    drive(depth, {1: 200.0, 2: 100.0}, 4, 1000)
    drive(depth, {1: 100.0, 2: 200.0}, 64, 5000)
    depth.token(1e9, 4)
    assert depth.now == 1
    depth.token(1e9, 64)
    assert depth.now == 2


def test_a_load_that_was_never_compared_goes_by_the_nearest_that_was() -> None:
    depth = Depth(3)
    depth.token(0.0, 40)
    assert depth.now == 3  # nothing is known yet
    drive(depth, {1: 300.0, 2: 200.0, 3: 100.0}, 20, 2000)
    drive(depth, {1: 50.0, 2: 100.0, 3: 200.0}, 2, 2000)
    for sessions, best in ((40, 1), (100, 1), (4, 3), (2, 3)):
        depth.disturbed()  # as by a prompt with every pass: nothing is ever compared
        depth.token(1e9, sessions)
        assert depth.now == best, sessions
    # Compared from there on, and then by itself.
    assert drive(depth, {1: 100.0, 2: 200.0, 3: 100.0}, 100, 20_000) > 0.8


def test_a_disturbed_comparison_changes_nothing() -> None:
    depth = Depth(2)
    now = 0.0
    for index in range(3000):
        now += 0.001 if depth.now == 1 else 1.0
        depth.token(now, 4)
        if index % 20 == 19:  # never five whole rounds
            depth.disturbed()
    assert depth.now == 2


@given(
    st.integers(1, 6), st.lists(st.tuples(st.integers(0, 40), st.floats(0, 2), st.booleans()), max_size=300)
)
def test_it_stays_within_the_pipeline(stages: int, events: list[tuple[int, float, bool]]) -> None:
    depth, now = Depth(stages), 0.0
    for sessions, passed, disturbed in events:
        now += passed
        if disturbed:
            depth.disturbed()
        depth.token(now, sessions)
        assert 1 <= depth.now <= stages
