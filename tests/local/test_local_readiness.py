from hypothesis import given
from hypothesis import strategies as st

from stagemesh.local.readiness import readiness
from stagemesh.v1 import registry_pb2 as pb

_SPEC = pb.ModelSpec(name="m", revision="r", replicas=[2, 1])
_STATES = [
    pb.REPLICA_STATE_LOADING,
    pb.REPLICA_STATE_READY,
    pb.REPLICA_STATE_FAILED,
    pb.REPLICA_STATE_DRAINING,
]


def _replica(stage, state=pb.REPLICA_STATE_READY, **other):
    fields = {"model": "m", "revision": "r", "node_id": "n", **other}
    return pb.ReplicaRecord(stage=stage, state=state, **fields)


def test_ready_needs_every_replica():
    assert not readiness(_SPEC, [_replica(0), _replica(1)]).ready
    assert readiness(_SPEC, [_replica(0), _replica(0), _replica(1)]).ready


def test_other_models_and_revisions_do_not_count():
    strangers = [_replica(0, model="x"), _replica(0, revision="old")]
    assert not readiness(_SPEC, [_replica(0), _replica(1), *strangers]).ready


def test_failures_are_told_in_the_replicas_words():
    verdict = readiness(_SPEC, [_replica(1, pb.REPLICA_STATE_FAILED, detail="no memory: 5 of 3 GiB")])
    assert verdict.failed == ("stage 1 on n: no memory: 5 of 3 GiB",)


def test_the_line_tells_loading_and_waiting():
    line = readiness(_SPEC, [_replica(0, pb.REPLICA_STATE_LOADING)], ["stage 1: no node"]).line
    assert line == "m: stage 0: 0/2 ready, 1 loading, stage 1: 0/1 ready (waiting: stage 1: no node)"


def test_stuck_is_what_waits_while_nothing_loads():
    assert (
        readiness(_SPEC, [_replica(0)], ["stage 1: no node has 5 GiB"]).stuck == "stage 1: no node has 5 GiB"
    )
    assert readiness(_SPEC, [_replica(0, pb.REPLICA_STATE_LOADING)], ["stage 1: no node"]).stuck == ""


def test_a_model_without_stages_is_not_ready():
    assert not readiness(pb.ModelSpec(name="m"), []).ready


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(_STATES)), max_size=8))
def test_ready_exactly_when_each_stage_has_what_it_wants(states):
    verdict = readiness(_SPEC, [_replica(stage, state) for stage, state in states])
    ready = [sum(item == (stage, pb.REPLICA_STATE_READY) for item in states) for stage in (0, 1)]
    assert verdict.ready == (ready[0] >= 2 and ready[1] >= 1)
    assert len(verdict.failed) == sum(state == pb.REPLICA_STATE_FAILED for _, state in states)
