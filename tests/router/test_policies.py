import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.policies import POLICIES, Candidate, LeastLoaded, P2cEwma, RoundRobin

names = sorted(POLICIES)
candidates = st.lists(
    st.builds(
        Candidate,
        replica_id=st.uuids().map(str),
        ready=st.booleans(),
        active=st.integers(0, 50),
        queue_depth=st.integers(0, 50),
        step_ms=st.floats(0, 1e4),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda each: each.replica_id,
)


@pytest.mark.parametrize("name", names)
@given(candidates, st.integers())
def test_never_a_replica_that_is_not_ready(name, offered, seed):
    policy, rng = POLICIES[name](), random.Random(seed)
    for _ in range(3):
        if any(each.ready for each in offered):
            assert policy.choose(offered, 0.0, rng) in [each for each in offered if each.ready]
        else:
            with pytest.raises(LookupError):
                policy.choose(offered, 0.0, rng)


@given(st.integers(1, 8), st.integers(1, 60), st.integers(0, 30))
def test_round_robin_is_fair_in_every_window(replicas, choices, before):
    offered = [Candidate(str(i)) for i in range(replicas)]
    policy, rng = RoundRobin(), random.Random(0)
    picks = [policy.choose(offered, 0.0, rng).replica_id for _ in range(before + choices)]
    for start in range(len(picks) - replicas + 1):
        assert len(set(picks[start : start + replicas])) == replicas


def test_round_robin_goes_on_when_replicas_come_and_go():
    policy, rng = RoundRobin(), random.Random(0)
    a, b, c = (Candidate(name) for name in "abc")
    assert [policy.choose([a, b], 0.0, rng).replica_id for _ in range(3)] == ["a", "b", "a"]
    assert policy.choose([a, b, c], 0.0, rng) is c
    assert policy.choose([a, c], 0.0, rng) is a


@given(candidates, st.integers())
def test_least_loaded_has_the_least(offered, seed):
    ready = [each for each in offered if each.ready]
    if not ready:
        return
    chosen = LeastLoaded().choose(offered, 0.0, random.Random(seed))
    assert chosen.active + chosen.queue_depth == min(each.active + each.queue_depth for each in ready)


@given(st.floats(0.1, 100), st.floats(4.5, 100), st.integers(0, 20), st.integers())
def test_p2c_prefers_the_faster_of_equally_busy_ones(step_ms, factor, busy, seed):
    fast = Candidate("fast", active=busy, step_ms=step_ms)
    slow = Candidate("slow", active=busy, step_ms=step_ms * factor)
    assert P2cEwma().choose([slow, fast], 0.0, random.Random(seed)) is fast


@given(st.floats(0, 100), st.integers(0, 20), st.integers(1, 20), st.integers())
def test_p2c_prefers_the_less_busy_of_equally_fast_ones(step_ms, active, more, seed):
    idle = Candidate("idle", active=active, step_ms=step_ms)
    busy = Candidate("busy", active=active, queue_depth=more, step_ms=step_ms)
    assert P2cEwma().choose([busy, idle], 0.0, random.Random(seed)) is idle


@given(st.floats(1, 100), st.floats(0, 0.05), st.integers())
def test_p2c_does_not_take_silence_for_speed(step_ms, confidence, seed):
    """A replica that was not heard of for long is as good as its peer, not better: the less busy one wins."""
    silent = Candidate("silent", active=3, step_ms=step_ms * 10, confidence=confidence)
    heard = Candidate("heard", active=2, step_ms=step_ms)
    assert P2cEwma().choose([silent, heard], 0.0, random.Random(seed)) is heard
    silent = Candidate("silent", active=2, step_ms=step_ms * 10, confidence=confidence)
    heard = Candidate("heard", active=3, step_ms=step_ms)
    assert P2cEwma().choose([silent, heard], 0.0, random.Random(seed)) is silent


@given(st.integers())
def test_p2c_gives_a_fast_replica_more_but_not_all(seed):
    """Sessions that stay open: a replica five times as slow gets about a sixth."""
    rng, policy, active = random.Random(seed), P2cEwma(), Counter()
    for _ in range(200):
        offered = [
            Candidate("fast", active=active["fast"], step_ms=10.0),
            Candidate("slow", active=active["slow"], step_ms=50.0),
        ]
        active[policy.choose(offered, 0.0, rng).replica_id] += 1
    assert 28 <= active["slow"] <= 39


@pytest.mark.parametrize("noise", [1.0, 3.9])
@given(st.integers())
def test_p2c_spreads_a_burst_over_two_like_replicas(noise, seed):
    rng, policy, active = random.Random(seed), P2cEwma(), Counter()
    for _ in range(200):
        offered = [
            Candidate("a", active=active["a"], step_ms=10.0),
            Candidate("b", active=active["b"], step_ms=10.0 * noise),
        ]
        active[policy.choose(offered, 0.0, rng).replica_id] += 1
    assert 70 <= active["a"] <= 130


@pytest.mark.parametrize("name", names)
def test_one_request_after_the_other_spreads_as_well(name):
    rng, policy = random.Random(7), POLICIES[name]()
    picks = Counter(policy.choose([Candidate("a"), Candidate("b")], 0.0, rng).replica_id for _ in range(200))
    assert 70 <= picks["a"] <= 130
