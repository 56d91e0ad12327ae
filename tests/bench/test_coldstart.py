"""Phases of a cold start: each lasts from the latest milestone before it, and together they are the whole."""

import pytest

from bench.coldstart_phases import MILESTONES, Phases, lengths
from stagemesh import records
from stagemesh.v1.registry_pb2 import Assignment, NodeRecord, ReplicaRecord, ReplicaState, ScaleRecord


def test_phases_add_up_to_the_token() -> None:
    # The nodes came after the assignments of another: nothing takes less than no time.
    taken = {"woken": 0.1, "nodes": 0.4, "assigned": 0.3, "ready": 0.9, "token": 1.0}
    found = lengths(taken)
    assert found["assigned"] == 0
    assert sum(found.values()) == pytest.approx(1.0)


def test_milestones_are_of_this_model_and_its_last_stage() -> None:
    phases = Phases("127.0.0.1:1", "m", "z")
    phases.begin()

    def wrote(key: str, record: object) -> None:
        phases._note(key, records.to_json(record))  # type: ignore[arg-type]

    def replica(model: str, stage: int, state: ReplicaState.ValueType) -> None:
        record = ReplicaRecord(model=model, stage=stage, state=state)
        wrote(records.replica_key(model, stage, f"{model}-{stage}"), record)

    wrote(records.scale_key("m"), ScaleRecord(model="m", replicas=[0, 0]))  # it goes to sleep
    wrote(records.node_key("n0"), NodeRecord(node_id="n0", zone="elsewhere"))
    assert not phases._at
    wrote(records.scale_key("m"), ScaleRecord(model="m", replicas=[1, 1]))
    wrote(records.node_key("n1"), NodeRecord(node_id="n1", zone="z"))
    wrote(records.assignment_key("n1", "m-0"), Assignment(model="m"))
    for state in (ReplicaState.REPLICA_STATE_LOADING, ReplicaState.REPLICA_STATE_READY):
        replica("m", 0, state)
        before = dict(phases._at)
        replica("other", 0, state)
        assert phases._at == before
        replica("m", 1, state)
        assert phases._at != before
    phases.end(phases._began + 100)
    assert tuple(phases.taken) == MILESTONES
    assert list(phases.taken.values()) == sorted(phases.taken.values())
