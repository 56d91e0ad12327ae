"""Which revision a request goes to while a rollout is under way, and what is told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.demand import Demand
from stagemesh.services.router.membership import Membership
from stagemesh.services.router.revisions import Revisions, drawn
from stagemesh.services.router.trials import bucket_of, is_fault

from stagemesh import errors, records
from stagemesh.v1 import registry_pb2 as pb

from .specs import listing, model, replica


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def rolling(share=0.25, state=pb.ROLLOUT_STATE_SHARING, step=7) -> pb.ModelSpec:
    spec = model(revision="r1", generation=3)
    spec.rollout.next.CopyFrom(model(revision="r2"))
    spec.rollout.state, spec.rollout.share, spec.rollout.step_unix_ms = state, share, step
    return spec


def revisions(spec, *replicas):
    membership, clock = Membership(grace_s=5.0), Clock()
    membership.snapshot(listing(spec, *replicas), 0.0)
    demand = Demand()
    demand.known = membership.models
    return Revisions(membership, demand, clock), membership, clock, demand


BOTH = [replica(f"{name}{stage}", stage, revision=name) for name in ("r1", "r2") for stage in (0, 1)]


def shares(found) -> float:
    return sum(found.spec("m", f"request-{n}").revision == "r2" for n in range(2000)) / 2000


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 1.0])
def test_the_share_of_requests_is_the_rollouts(share) -> None:
    found, *_ = revisions(rolling(share), *BOTH)
    assert shares(found) == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0)


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_who_is_at_the_candidate_stays_there_as_the_share_rises(request_id, one, other) -> None:
    low, high = sorted((one, other))
    revision = [revisions(rolling(share), *BOTH)[0].spec("m", request_id).revision for share in (low, high)]
    assert revision != ["r2", "r1"]
    assert 0 <= drawn(request_id, 1) < 1


def test_where_one_revision_has_no_route_the_other_answers() -> None:
    r1, r2 = BOTH[:2], BOTH[2:]
    assert shares(revisions(rolling(0.25), *r1)[0]) == 0
    assert shares(revisions(rolling(0.25), *r2)[0]) == 1
    # But not one that was never tried, or that was judged.
    for state in (pb.ROLLOUT_STATE_LOADING, pb.ROLLOUT_STATE_BACKING_OUT):
        assert shares(revisions(rolling(0.0, state), *r2)[0]) == 0


def test_an_answer_goes_on_with_its_own_revision() -> None:
    found, *_ = revisions(rolling(0.0), *BOTH)
    for revision in ("r1", "r2"):
        assert found.spec("m", "x", lambda spec, own=revision: spec.revision == own).revision == revision
    assert found.spec("m", "x", lambda spec: False).revision == "r1"


def test_both_revisions_have_their_own_replicas() -> None:
    _, membership, *_ = revisions(rolling(), *BOTH)
    spec, candidate = membership.models["m"], membership.candidates["m"]
    for _ in range(2):
        assert [[each.replica_id for each in stage] for stage in membership.ready(spec)] == [["r10"], ["r11"]]
        assert [[each.replica_id for each in stage] for stage in membership.ready(candidate)] == [
            ["r20"],
            ["r21"],
        ]
    # It took over: a session on what was deployed keeps its replicas while they are there.
    done = model(revision="r2")
    membership.change(records.model_key("m"), records.to_json(done), 1.0)
    assert "m" not in membership.candidates
    assert [[each.replica_id for each in stage] for stage in membership.ready(spec)] == [["r10"], ["r11"]]


def report(demand) -> dict[str, pb.RevisionTrial]:
    (told,) = demand.report("router", 1.0).models
    return {trial.revision: trial for trial in told.trials}


def request(found, error) -> None:
    with found.choose("m", "a") as chosen:
        chosen.dispatched()
        raise error


def test_what_is_told_of_both() -> None:
    found, membership, clock, demand = revisions(rolling(1.0), *BOTH)
    demand.complete = found.trials.add_to
    assert {name: (each.running, each.requests) for name, each in report(demand).items()} == {
        "r1": (0, 0),
        "r2": (0, 0),
    }
    with found.choose("m", "a") as chosen:
        chosen.dispatched()
        clock.now += 0.5
        chosen.answered()
        clock.now += 0.5
        chosen.tokens = 9
        assert report(demand)["r2"].running == 1
    trial = report(demand)["r2"]
    assert (trial.running, trial.requests, trial.errors, trial.step_unix_ms, trial.generation) == (
        0,
        1,
        0,
        7,
        3,
    )
    assert [n for n, count in enumerate(trial.pace) if count] == [bucket_of(100.0)]
    with pytest.raises(errors.Unavailable):
        request(found, errors.Unavailable("gone"))
    trial = report(demand)["r2"]
    assert (trial.requests, trial.errors, sum(trial.pace)) == (2, 1, 1)
    # It counts up until the next step, at which it begins anew.
    membership.change(records.model_key("m"), records.to_json(rolling(1.0, step=8)), 1.0)
    assert report(demand)["r2"].requests == 0


def test_what_says_nothing_of_a_revision_is_not_counted() -> None:
    found, _, _, demand = revisions(rolling(1.0), *BOTH)
    demand.complete = found.trials.add_to
    with found.choose("m", "a") as chosen:  # from the cache
        chosen.dispatched()
        chosen.cached = True
    for error in (errors.InvalidArgument("x"), errors.ResourceExhausted("x"), GeneratorExit()):
        with pytest.raises(type(error)):
            request(found, error)
    with pytest.raises(errors.DeadlineExceeded), found.choose("m", "a"):  # while it waited for its turn
        raise errors.DeadlineExceeded("x")
    assert report(demand)["r2"].requests == 0
    assert report(demand)["r2"].running == 0


def test_without_a_rollout_only_what_runs_is_kept() -> None:
    spec = model(revision="r1")
    found, _, _, demand = revisions(spec, *BOTH)
    demand.complete = found.trials.add_to
    with found.choose("m", "a") as chosen:
        chosen.dispatched()
        assert found.trials.running("m", "r1") == 1
    (told,) = demand.report("router", 1.0).models
    assert not told.trials
    assert [(each.revision, each.requests) for each in told.revisions] == [("r1", 1)]
    assert repr(found) == "Revisions(Trials(running={}, counted=0))"


def test_faults() -> None:
    assert all(map(is_fault, (errors.InternalError("x"), errors.CheckpointError("x"), ValueError())))
    assert not any(map(is_fault, (None, errors.NotFound("x"), errors.Cancelled("x"), errors.OutOfRange("x"))))
