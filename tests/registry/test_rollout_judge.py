"""The tests by which a candidate is judged, against their definitions and by trial."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from stagemesh.services.registry.rollout.judge import (
    ALPHA,
    MIN_REQUESTS,
    SLOWER,
    Counts,
    bucket_of,
    fisher,
    look_of,
    mann_whitney,
    median,
    milliseconds_of,
    worse,
)
from stagemesh.services.registry.rollout.trials import Trials

from stagemesh.v1 import registry_pb2 as pb
from tests.registry.test_rollout_machine import rollout

COUNT = st.integers(0, 60)


@given(COUNT, COUNT, COUNT, COUNT)
@settings(deadline=None, max_examples=60)
def test_fisher_is_scipys(errors, well, other_errors, other_well) -> None:
    expected = stats.fisher_exact([[errors, well], [other_errors, other_well]], alternative="greater")[1]
    found = fisher(errors, errors + well, other_errors, other_errors + other_well)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(
    st.lists(st.integers(0, 9), min_size=8, max_size=60), st.lists(st.integers(0, 9), min_size=8, max_size=60)
)
@settings(deadline=None, max_examples=60)
def test_mann_whitney_is_scipys(one, other) -> None:
    def counts(values):
        return [values.count(bucket) for bucket in range(10)]

    if len({*one, *other}) == 1:
        assert mann_whitney(counts(one), counts(other)) == 1.0
        return
    expected = stats.mannwhitneyu(one, other, alternative="greater", method="asymptotic").pvalue
    assert mann_whitney(counts(one), counts(other)) == pytest.approx(expected, rel=1e-6)


def drawn(rng, requests, error_rate, ms) -> Counts:
    errors = sum(rng.random() < error_rate for _ in range(requests))
    pace = [0] * 96
    for _ in range(requests - errors):
        pace[bucket_of(ms * rng.lognormvariate(0, 0.5))] += 1
    return Counts(requests, errors, tuple(pace))


def judged(rng, candidate, deployed, rounds=40) -> str:
    """What is found while requests come in, seven to the candidate for each twenty others, looked at again and again."""
    own, other, looked = Counts(), Counts(), 0
    for _ in range(rounds):
        own += drawn(rng, 7, *candidate)
        other += drawn(rng, 20, *deployed)
        look = look_of(own.requests)
        if look > looked:
            looked = look
            if found := worse(own, other, look):
                return found
    return ""


def test_equal_revisions_are_hardly_ever_told_apart() -> None:
    rng = random.Random(3)
    wrong = sum(bool(judged(rng, (0.05, 20), (0.05, 20))) for _ in range(120))
    # Of 120, 120 * 2 * ALPHA are expected at most; five has a chance below one in a hundred.
    assert wrong <= 4
    assert 120 * 2 * ALPHA < 2


def test_what_fails_and_what_is_slow_is_found() -> None:
    rng = random.Random(4)
    assert sum(bool(judged(rng, (0.5, 20), (0.02, 20))) for _ in range(20)) == 20
    assert sum(bool(judged(rng, (0.0, 60), (0.0, 20))) for _ in range(20)) == 20
    # Slower by less than what is allowed is not.
    assert sum(bool(judged(rng, (0.0, 22), (0.0, 20))) for _ in range(20)) == 0
    assert SLOWER < 1.5


def test_few_requests_prove_nothing() -> None:
    few = Counts(MIN_REQUESTS - 1, MIN_REQUESTS - 1)
    assert worse(few, Counts(1000, 0), 1) == ""
    assert worse(Counts(1000, 1000), few, 1) == ""
    assert worse(Counts(MIN_REQUESTS, MIN_REQUESTS), Counts(MIN_REQUESTS, 0), 1) != ""


def test_looks_are_counted_by_requests() -> None:
    assert [look_of(count) for count in (0, 19, 20, 24, 25, 31, 32, 40)] == [0, 0, 1, 1, 2, 2, 3, 4]


def test_buckets() -> None:
    assert bucket_of(0) == 0
    assert bucket_of(1e12) == 95
    for ms in (0.1, 1.0, 33.0, 4000.0):
        assert milliseconds_of(bucket_of(ms)) == pytest.approx(ms, rel=0.19)
    assert median([0, 3, 0, 2]) == 1
    assert Counts(1, 1, (1,)) + Counts(2, 0, (1, 2)) == Counts(3, 1, (2, 2))


# ---- what routers tell ----


def told(spec, revision, requests=0, errors=0, running=0, generation=None, step=None) -> pb.ModelReport:
    trial = pb.RevisionTrial(
        revision=revision,
        step_unix_ms=spec.rollout.step_unix_ms if step is None else step,
        generation=spec.generation if generation is None else generation,
        requests=requests,
        errors=errors,
        running=running,
    )
    return pb.ModelReport(model=spec.name, trials=[trial])


def report(trials, router, now, *models) -> None:
    trials.take(router, models, now)


def test_routers_are_added_up_and_sessions_are_unknown_until_all_have_told() -> None:
    trials, spec = Trials(), rollout()
    report(trials, "a", 1.0, told(spec, "r1", 30, running=2), told(spec, "r2", 15, 15))
    assert trials.look(spec, {"a", "b"}, 1.5).old is None
    assert trials.look(spec, {"a", "b"}, 1.5).blind
    report(trials, "b", 2.0, told(spec, "r1", 30, running=1), told(spec, "r2", 15, 15, running=1))
    found = trials.look(spec, {"a", "b"}, 2.5)
    assert (found.old, found.new, found.requests, found.blind) == (3, 1, 30, False)
    assert "30 of 30 requests failed" in found.worse
    # Too long ago to say what is under way now.
    assert trials.look(spec, {"a", "b"}, 6.5).old is None
    # A router that goes takes its sessions with it, and what it counted stays.
    assert trials.look(spec, {"b"}, 6.5).old == 1
    assert trials.look(spec, {"b"}, 6.5).requests == 30


def test_counts_of_another_step_are_not_mixed_in_and_an_older_record_says_nothing_of_now() -> None:
    trials, spec = Trials(), rollout()
    report(trials, "a", 1.0, told(spec, "r2", 50, 50, step=spec.rollout.step_unix_ms - 1))
    assert trials.look(spec, {"a"}, 1.0).requests == 0
    report(trials, "a", 1.0, told(spec, "r1", generation=spec.generation), told(spec, "r2"))
    spec.generation += 1
    assert trials.look(spec, {"a"}, 1.0).old is None


def test_at_full_share_it_is_compared_with_what_was_before() -> None:
    trials, spec = Trials(), rollout()
    report(trials, "a", 1.0, told(spec, "r1", 100), told(spec, "r2", 100))
    assert trials.look(spec, {"a"}, 1.0).worse == ""
    spec.rollout.step_unix_ms += 10
    report(trials, "a", 2.0, told(spec, "r1"), told(spec, "r2", 40, 40))
    assert "40 of 40" in trials.look(spec, {"a"}, 2.0).worse


def test_what_is_over_is_forgotten() -> None:
    trials, spec = Trials(), rollout()
    report(trials, "a", 1.0, told(spec, "r1", 100))
    trials.look(spec, {"a"}, 1.0)
    trials.keep(set(), set(), 100.0)
    assert repr(trials) == "<Trials of 0 reporters, 0 rollouts>"
