"""The states of a rollout, driven by anything that a registry may see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.rollout.begin import (
    Way,
    aborted,
    begun,
    deployed,
    promoted,
    scale_candidate,
    way_of,
)
from stagemesh.services.registry.rollout.machine import Limits, Seen, advance

from stagemesh import records
from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.revisions import candidate_of, rolls_out, spec_of, specs_of
from stagemesh.v1 import registry_pb2 as pb
from tests.registry.assigned import model

LIMITS = Limits(drain_s=60, blind_s=5)
GOOD = Seen(candidate_ready=True, candidate_full=True, requests=100, enough=True, old=0, new=0)
STEPS = (0.05, 0.25, 1.0)


def rollout(steps=STEPS, hold_s=10, old="r1", new="r2") -> pb.ModelSpec:
    return begun(
        model("m", [1, 1], revision=old), model("m", [1, 1], revision=new), Way(steps, hold_s), "", 1000
    )


def states(spec: pb.ModelSpec, seen: Seen, now_ms: int, limits: Limits = LIMITS) -> list[tuple[str, float]]:
    """State and share after each step, until nothing more happens; the clock stands."""
    found = []
    while (step := advance(spec, seen, now_ms, limits)) is not None:
        spec = step.spec
        found.append((pb.RolloutState.Name(spec.rollout.state)[14:], round(spec.rollout.share, 3)))
    return found


def test_without_a_canary_it_takes_over_as_soon_as_it_is_ready() -> None:
    spec = rollout((1.0,), 0)
    assert states(spec, Seen(old=0), 2000) == []
    assert states(spec, GOOD, 2000) == [("SHARING", 1), ("DRAINING", 1), ("DONE", 1)]


def test_each_share_is_watched_before_the_next() -> None:
    spec, now = rollout(), 2000
    seen = []
    for _ in range(6):
        step = advance(spec, GOOD, now, LIMITS)
        assert step is not None
        spec = step.spec
        seen.append((step.kind, round(spec.rollout.share, 3)))
        if spec.rollout.state == pb.ROLLOUT_STATE_SHARING:
            assert advance(spec, GOOD, now + 9_000, LIMITS) is None
        now += 10_001
        if not rolls_out(spec):
            break
    assert seen == [
        ("rollout.canary", 0.05),
        ("rollout.share", 0.25),
        ("rollout.share", 1),
        ("rollout.draining", 1),
        ("rollout.done", 1),
    ]
    assert spec.revision == "r2"
    assert spec.rollout.from_revision == "r1"


def test_a_step_waits_for_requests_to_judge_by_but_not_forever() -> None:
    step = advance(rollout(), GOOD, 2000, LIMITS)
    assert step is not None
    few = Seen(candidate_ready=True, candidate_full=True, requests=3)
    assert advance(step.spec, few, 2000 + 99_000, LIMITS) is None
    after = advance(step.spec, few, 2000 + 101_000, LIMITS)
    assert after is not None
    assert after.spec.rollout.share == pytest.approx(0.25)
    assert "3 requests" in after.reason


def test_a_worse_candidate_is_taken_back_when_nobody_is_on_it() -> None:
    step = advance(rollout(), GOOD, 2000, LIMITS)
    assert step is not None
    bad = Seen(candidate_ready=True, candidate_full=True, worse="9 of 20 failed", new=3)
    back = advance(step.spec, bad, 3000, LIMITS)
    assert back is not None
    assert (back.kind, back.spec.rollout.share) == ("rollout.rollback", 0)
    assert "9 of 20" in back.reason
    assert advance(back.spec, bad, 4000, LIMITS) is None
    gone = advance(back.spec, Seen(new=0), 5000, LIMITS)
    assert gone is not None
    assert gone.spec.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    assert specs_of(gone.spec) == [gone.spec]
    assert gone.spec.revision == "r1"
    assert "9 of 20" in gone.spec.rollout.reason


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen(failures=3, failure="stage 1 on n2: no such file"), "no such file"),
        (Seen(), "not ready within"),
    ],
)
def test_a_candidate_that_does_not_come_up_is_taken_back(seen: Seen, words: str) -> None:
    late = 1000 + 1801 * 1000
    step = advance(rollout(), seen, late, LIMITS)
    assert step is not None
    assert step.spec.rollout.state == pb.ROLLOUT_STATE_ROLLED_BACK
    assert words in step.reason


def test_running_sessions_are_waited_for_within_limits() -> None:
    spec = rollout((1.0,), 0)
    spec.rollout.state, spec.rollout.share = pb.ROLLOUT_STATE_DRAINING, 1.0
    at = spec.rollout.step_unix_ms
    assert advance(spec, Seen(old=1), at + 59_000, LIMITS) is None
    over = advance(spec, Seen(old=1), at + 61_000, LIMITS)
    assert over is not None
    assert "1 sessions were still under way" in over.reason
    # A router that is late is waited for like a session; one that never tells, for a moment.
    assert advance(spec, Seen(old=None), at + 59_000, LIMITS) is None
    assert advance(spec, Seen(old=None, blind=True), at + 4_000, LIMITS) is None
    assert advance(spec, Seen(old=None, blind=True), at + 5_000, LIMITS) is not None


def test_what_does_not_serve_is_replaced_at_once() -> None:
    assert states(rollout(), Seen(deployed_ready=False, candidate_ready=True), 2000) == [("DONE", 1)]
    assert states(rollout(), Seen(asleep=True, deployed_ready=False), 2000) == [("DONE", 1)]


SEEN = st.builds(
    Seen,
    deployed_ready=st.booleans(),
    candidate_ready=st.booleans(),
    candidate_full=st.booleans(),
    asleep=st.sampled_from([False, False, False, True]),
    failures=st.integers(0, 3),
    failure=st.just("x"),
    worse=st.sampled_from(["", "", "", "slow"]),
    requests=st.integers(0, 50),
    enough=st.booleans(),
    old=st.one_of(st.none(), st.integers(0, 2)),
    new=st.one_of(st.none(), st.integers(0, 2)),
    blind=st.booleans(),
)
ACTIONS = st.sampled_from(["look"] * 6 + ["promote", "abort", "restart"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(SEEN, st.integers(-2000, 30_000), ACTIONS), max_size=30),
    st.sampled_from([(1.0,), STEPS, (0.5, 1.0)]),
    st.sampled_from([0, 5]),
)
def test_whatever_is_seen(history, steps, hold_s) -> None:
    spec = rollout(steps, hold_s)
    first, now = spec.revision, 1000
    for seen, passed, action in history:
        before = pb.ModelSpec()
        before.CopyFrom(spec)
        now += passed  # clocks of several registries: it may go back
        if action == "restart":  # another registry, which has the record and nothing else
            spec = records.from_json(records.to_json(spec), pb.ModelSpec)
            continue
        if action == "look":
            step = advance(spec, seen, now, LIMITS)
            if step is None:
                continue
            assert step.reason
            assert step.kind.startswith("rollout.")
            spec = step.spec
        else:
            try:
                spec = promoted(spec, now) if action == "promote" else aborted(spec, "asked", now)
            except FailedPrecondition:
                assert not rolls_out(before) or action == "promote"
                continue
        share, old_share = spec.rollout.share, before.rollout.share
        # What is deployed stays until its candidate took its place, in one step.
        if spec.revision != first:
            assert spec.revision == "r2"
            assert not rolls_out(spec)
            draining = before.rollout.state == pb.ROLLOUT_STATE_DRAINING
            assert draining or before.rollout.state == pb.ROLLOUT_STATE_LOADING
            # Nobody was on it: none at all, or none that a router knows of, or the limit is over.
            if draining and seen.old and action == "look":
                assert now - before.rollout.step_unix_ms >= LIMITS.drain_s * 1000
            return
        assert spec_of(spec, "r1") is not None
        # The share only rises, until it is given up.
        backing = spec.rollout.state in (pb.ROLLOUT_STATE_BACKING_OUT, pb.ROLLOUT_STATE_ROLLED_BACK)
        assert share == 0 if backing else share >= old_share
        # Sessions are sent only to a candidate that was ready when it got its share.
        if share > old_share and action == "look":
            assert seen.candidate_ready
        if spec.rollout.state != before.rollout.state or share != old_share:
            assert rolls_out(before)
        if rolls_out(spec):
            assert candidate_of(spec) is not None
            assert aborted(spec, "it is always possible", now).rollout.share == 0
        # No two steps share a time, by which counts are told apart.
        if spec.rollout.state != before.rollout.state:
            assert spec.rollout.step_unix_ms > before.rollout.step_unix_ms
    # From the record alone, a registry that sees it well brings it to an end.
    spec = records.from_json(records.to_json(spec), pb.ModelSpec)
    for _ in range(10):
        now = max(now, spec.rollout.step_unix_ms) + 200_000
        step = advance(spec, GOOD, now, LIMITS)
        if step is None:
            break
        spec = step.spec
    assert not rolls_out(spec)


def test_what_a_deployment_makes_of_what_is_there() -> None:
    old, new, third = (model("m", [1, 1], revision=name) for name in ("r1", "r2", "r3"))

    def ask(current, wanted, serves=True):
        return deployed(current, wanted, Way(), serves=serves, now_ms=5)

    assert ask(None, new).revision == "r2"
    assert not ask(None, new).HasField("rollout")
    # Nothing serves: there is nothing to keep.
    assert ask(old, new, serves=False).revision == "r2"
    rolling = ask(old, new)
    assert (rolling.revision, candidate_of(rolling).revision) == ("r1", "r2")
    # Asked for again, it is the same rollout; with other settings, those.
    assert ask(rolling, new) == rolling
    more = model("m", [1, 1], replicas=3, revision="r2")
    assert list(candidate_of(ask(rolling, more)).replicas) == [3, 3]
    # Nobody is on it yet: another one may take its place.
    assert candidate_of(ask(rolling, third)).revision == "r3"
    sharing = advance(rolling, GOOD, 10, LIMITS).spec
    with pytest.raises(FailedPrecondition, match="promote or abort"):
        ask(sharing, third)
    # What is deployed, asked for again, takes the candidate back.
    back = ask(sharing, old)
    assert back.rollout.state == pb.ROLLOUT_STATE_BACKING_OUT
    # The same partitions of the same revision change in place.
    assert list(ask(old, model("m", [1, 1], replicas=2, revision="r1")).replicas) == [2, 2]


def test_scaling_holds_after_the_rollout() -> None:
    spec = rollout()
    scale_candidate(spec, 4, None)
    assert list(candidate_of(spec).replicas) == [4, 4]
    scale_candidate(spec, 2, 1)
    assert list(candidate_of(spec).replicas) == [4, 2]
    other = begun(model("m", [1, 1]), model("m", [1, 1, 1], revision="r2"), Way(), "", 1)
    scale_candidate(other, 4, 1)  # its stage 1 is another one
    assert list(candidate_of(other).replicas) == [1, 1, 1]


@pytest.mark.parametrize(
    ("canary", "seconds", "steps", "hold_s"),
    [(0, 0, (1.0,), 0), (0.05, 30, (0.05, 0.25, 1.0), 30), (0.5, 0, (0.5, 1.0), 60), (1, 20, (1,), 20)],
)
def test_the_way_of_a_request(canary, seconds, steps, hold_s) -> None:
    assert way_of(canary, seconds) == Way(steps, hold_s)


@pytest.mark.parametrize(
    ("canary", "seconds", "field"),
    [(1.1, 0, "canary"), (-0.1, 0, "canary"), (0, 5, "canary_s"), (0.1, 10**6, "canary_s")],
)
def test_a_way_that_makes_no_sense(canary, seconds, field) -> None:
    with pytest.raises(InvalidArgument) as caught:
        way_of(canary, seconds)
    assert caught.value.field == field
