"""When a replica counts as slow: beside its peers, beside itself, and by how much at least."""

import pytest
from stagemesh.services.router.health.slowness import (
    AT_LEAST_MS,
    SLOWER,
    THAN_BEFORE,
    Pace,
    is_slow,
    pace_of,
    slow_ones,
)
from stagemesh.services.router.health.step_times import StepTimes


def paces(*rows):
    return [Pace(name, now, now or known, normal) for name, now, known, normal in rows]


def names(found):
    return [each.replica_id for each in found]


@pytest.mark.parametrize(
    ("ms", "normal", "peers", "slow"),
    [
        (10 * SLOWER, 0.0, [10.0, 10.0], True),
        (10 * SLOWER - 1, 0.0, [10.0, 10.0], False),
        (60.0, 60 / THAN_BEFORE, [10.0], True),
        (60.0, 60 / THAN_BEFORE + 1, [10.0], False),
        (AT_LEAST_MS, 0.0, [0.1], False),
        (AT_LEAST_MS + 0.1, 0.0, [0.1], True),
        (60.0, 0.0, [1.0, 1.0, 30.0, 30.0, 30.0], False),
        (60.0, 0.0, [], False),
        (60.0, 0.0, [0.0], False),
        (60.0, 0.0, [0.0, 10.0], True),
    ],
)
def test_slow_is_beside_the_median_of_its_peers_and_beside_itself(ms, normal, peers, slow):
    assert is_slow(ms, normal, peers) == slow


def test_a_peer_that_reports_nothing_now_counts_by_its_mean():
    found = slow_ones(paces(("a", 100.0, 0, 10.0), ("b", None, 10.0, 10.0)))
    assert names(found) == ["a"]


def test_one_that_reports_nothing_now_is_not_judged():
    assert not slow_ones(paces(("a", None, 100.0, 10.0), ("b", 10.0, 0, 10.0)))
    assert not slow_ones(paces(("a", 100.0, 0, 10.0), ("b", None, 0.0, 0.0)))


def test_normal_is_the_least_of_what_is_known():
    times = StepTimes()
    assert pace_of("a", times, 0.0, 0.0) == Pace("a", None, 0.0, 0.0)
    assert pace_of("a", times, 7.0, 0.0).normal_ms == 7.0
    for second in range(20):
        times.report(3.0 + second / 100, float(second))
    assert pace_of("a", times, 7.0, 20.0).normal_ms == times.mean_ms
    assert pace_of("a", times, 2.0, 20.0).normal_ms == 2.0
