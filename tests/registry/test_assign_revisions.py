"""A newer revision serves before the older one goes, in the room that there is."""

from stagemesh.services.registry.board import Assign, Unassign

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
)
from tests.registry.assigned import Mesh, model, node


def test_a_new_revision_serves_before_the_old_one_goes() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10, 10])])
    mesh.settle()
    old = set(mesh.assignments)
    mesh.models["m"] = model("m", [10, 10, 10], revision="r2")
    mesh.apply(mesh.plan())
    new = sorted(set(mesh.assignments) - old)
    assert len(new) == 3
    for replica_id in new[:2]:
        mesh.load(only=replica_id)
        assert mesh.plan().decisions == []
    mesh.load(only=new[2])
    mesh.settle()
    assert set(mesh.assignments) == set(new)


def test_a_new_revision_takes_the_room_of_replicas_the_old_can_spare() -> None:
    # Room for two replicas of 1000 * 1.2 bytes in all.
    mesh = Mesh([node("a", 1_300), node("b", 1_300)], [model("m", [1000], 2)])
    mesh.settle()
    mesh.models["m"] = model("m", [1000], 1, revision="r2")
    mesh.apply(mesh.plan())
    assert sorted(held.revision for held in mesh.assignments.values()) == ["r1", "r2"]
    mesh.settle()
    assert [held.revision for held in mesh.assignments.values()] == ["r2"]


def test_without_room_the_old_revision_goes_on_and_the_reason_is_told() -> None:
    mesh = Mesh([node("a", 1_300)], [model("m", [1000])])
    mesh.settle()
    mesh.models["m"] = model("m", [1000], revision="r2")
    plan = mesh.settle()
    assert [held.revision for held in mesh.assignments.values()] == ["r1"]
    (line,) = plan.pending["m"]
    assert line == (
        "stage 0, replica 1 of 1: needs 1200 bytes, the most that one of 1 nodes has free is 100 of 1300 (a); "
        "the older revision, which still serves, holds a part"
    )


def test_a_failed_replica_of_an_old_revision_goes_at_once() -> None:
    mesh = Mesh([node("a")], [model("m", [10])])
    mesh.apply(mesh.plan())
    mesh.load(REPLICA_STATE_FAILED)
    mesh.models["m"] = model("m", [10], revision="r2")
    plan = mesh.plan()
    assert [type(decision) for decision in plan.decisions] == [Unassign, Assign]
