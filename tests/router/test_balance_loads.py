"""What the router keeps of a replica: sessions, loads that were told, step times."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.health.step_times import FEWEST_BUCKETS, FEWEST_RECENT, StepTimes
from stagemesh.services.router.loads import Loads
from stagemesh.services.router.policies.candidate import FRESH_S, UNSURE

from stagemesh.v1.stage_pb2 import ReplicaLoad

from .specs import replica

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

A = replica("a", zone="z", canary_ms=3.0)


def seen(loads):
    return loads.candidates([A])[0]


def test_sessions_of_others_are_those_beyond_our_own():
    loads = Loads()
    loads.begin(["a", "b"])
    loads.begin(["a"])
    loads.report([ReplicaLoad(replica_id="a", sessions=5, queue_depth=1)], 0.0)
    assert (seen(loads).active, seen(loads).others, seen(loads).load(0.5)) == (2, 3, 5)
    loads.report([ReplicaLoad(replica_id="a", sessions=1, queue_depth=7)], 0.0)
    assert seen(loads).others == 5, "steps that wait beyond our own sessions"
    loads.report([ReplicaLoad(replica_id="a", sessions=1)], 0.0)
    assert seen(loads).others == 0
    loads.end(["a"])
    assert seen(loads).active == 1
    assert (seen(loads).zone, seen(loads).canary_ms) == ("z", 3.0)


def test_candidates_that_are_kept_follow_what_begins_and_ends():
    loads, row = Loads(), [A, replica("b")]
    for step, active in ((lambda: None, 0), (lambda: loads.begin(["a"]), 1), (lambda: loads.begin(["a", "b"]), 2), (lambda: loads.end(["a"]), 1)):  # fmt: skip
        step()
        assert [each.active for each in loads.candidates(row, whole=True)] == [active, loads.counts("b")[1]]
        assert loads.counts("a")[1] == active


def test_two_failures_far_apart_in_sessions_are_no_reason_to_eject():
    for sessions, due in ((5, "errors"), (600, "")):
        loads = Loads()
        loads.failed("a", 0.0)
        for _ in range(sessions):
            loads.begin(["a"])
            loads.end(["a"])
            loads.succeeded(["a"], 0.5)
        loads.failed("a", 1.0)
        assert loads.health._known["a"].due == due


def test_prompts_on_their_way_wait_until_their_first_token_whatever_is_told_meanwhile():
    loads = Loads()
    loads.sent(["a"], 500)
    assert seen(loads).waiting(0.0) == (500, 0.0)
    loads.report([ReplicaLoad(replica_id="a", prompt_tokens=0)], 0.0)
    assert seen(loads).waiting(0.5)[0] == 500, "what it told is from before the prompt came"
    loads.sent(["a"], 200)
    loads.report([ReplicaLoad(replica_id="a", prompt_tokens=1700)], 1.0)
    assert seen(loads).waiting(1.0)[0] == 1700, "1,000 of them are others'"
    loads.through(["a"], 500)
    assert seen(loads).waiting(1.0)[0] == 1200
    assert seen(loads).waiting(1.0 + FRESH_S)[0] == 200, "of others' nothing is known any more"
    loads.through(["a"], 200)
    assert seen(loads).waiting(1.0)[0] == 1000
    assert seen(loads).waiting(1.0 + FRESH_S)[0] == 0


def test_room_is_less_by_what_was_sent_since_it_was_told():
    loads = Loads()
    loads.sent(["a"], 100)
    loads.report([ReplicaLoad(replica_id="a", prompt_tokens=100, kv_tokens_free=1000)], 0.0)
    assert seen(loads).kv_free == 1000
    loads.sent(["a"], 300)
    assert seen(loads).kv_free == 700
    loads.sent(["a"], 3000)
    assert seen(loads).kv_free == 0


def test_a_record_that_changed_is_seen():
    loads = Loads()
    loads.candidates([A])
    assert loads.candidates([replica("a", zone="other")])[0].zone == "other"


def test_slower_counts_at_once_and_faster_gradually():
    loads = Loads()
    loads.report([ReplicaLoad(replica_id="a", step_ms=100)], 0.0)
    loads.report([ReplicaLoad(replica_id="a", step_ms=10)], 1.0)
    assert 80 < seen(loads).peak_ms < 100
    loads.report([ReplicaLoad(replica_id="a", step_ms=500)], 2.0)
    assert seen(loads).peak_ms == 500
    assert seen(loads).confidence(2.0) == 1
    assert seen(loads).confidence(62.0) < 0.01


def test_forgets_who_left_and_runs_nothing():
    loads = Loads()
    loads.begin(["a"])
    loads.forget(set())
    assert loads.counts("a") == (1, 1), "it still runs something"
    loads.end(["a"])
    loads.forget({"a"})
    assert loads.counts("a") == (1, 0)
    loads.forget(set())
    assert loads.counts("a") == (0, 0)


@pytest.mark.parametrize("step_ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_step_time_is_ignored(step_ms):
    times = StepTimes()
    times.report(step_ms, 0.0)
    assert (times.peak_ms, times.mean_since(-1)) == (0.0, None)


@RELAXED
@given(st.integers(), st.floats(0.1, 1000), st.floats(0.01, 0.8))
def test_doubt_shrinks_with_what_is_known_and_grows_with_noise(seed, step_ms, noise):
    rng, quiet, noisy = random.Random(seed), StepTimes(), StepTimes()
    doubts = []
    for second in range(60):
        for part in range(5):
            now = second + part / 10
            quiet.report(step_ms * (1 + rng.random() / 1000), now)
            noisy.report(step_ms * rng.lognormvariate(0, noise), now)
        doubts.append(quiet.doubt)
        if second < FEWEST_BUCKETS:
            assert (quiet.mean_ms, quiet.doubt) == (0.0, UNSURE), "seconds count, not reports"
    assert doubts == sorted(doubts, reverse=True)
    assert quiet.doubt < 1.2
    assert quiet.mean_ms == pytest.approx(step_ms, rel=0.01)
    assert step_ms / noisy.doubt < noisy.mean_ms < step_ms * noisy.doubt
    assert noisy.doubt > quiet.doubt or noise < 0.5


def test_the_mean_follows_within_a_minute_or_two():
    times = StepTimes()
    for second in range(300):
        times.report((10.0 if second < 100 else 40.0) + second / 1000, float(second))
    assert times.mean_ms == pytest.approx(40, rel=0.1)


def test_how_it_does_now_needs_enough_fresh_and_different_reports():
    times = StepTimes()
    for count in range(FEWEST_RECENT):
        assert times.now_ms(count / 10) is None
        times.report(10.0 + count, count / 10)
        times.report(10.0 + count, count / 10)  # told again, no pass in between
    assert times.now_ms(0.5) == 12.0
    assert times.now_ms(0.5, since=0.1) is None
    assert times.now_ms(5.2) is None
    assert (times.mean_since(0.2), times.mean_since(0.4)) == (13.5, None)
