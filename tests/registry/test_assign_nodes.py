"""Nodes that are lost, fail a replica, drain, or come late."""

from collections import Counter

from stagemesh.services.registry.assign import failed_backoff_s
from stagemesh.services.registry.board import Assign, Unassign

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
    REPLICA_STATE_READY,
)
from tests.registry.assigned import PATIENCE, Mesh, model, node


def test_a_lost_node_is_given_grace_and_then_replaced() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10, 10])])
    mesh.settle()
    mesh.lose("a")
    assert mesh.plan().decisions == []
    mesh.now = 4.9
    assert mesh.plan().decisions == []
    mesh.now = 5.0
    plan = mesh.plan()
    assert [type(decision) for decision in plan.decisions] == [Unassign, Assign]
    assert plan.decisions[0].reason == "node a is gone"
    mesh.apply(plan)
    assert mesh.on("b") == [("m", 0), ("m", 1)]


def test_all_records_lost_and_back_within_the_grace_moves_nothing() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10, 10], 2)])
    mesh.settle()
    nodes = dict(mesh.nodes)
    for node_id in nodes:
        mesh.lose(node_id)
    assert mesh.plan().decisions == []
    mesh.now = 3.0
    assert mesh.plan().decisions == []
    mesh.nodes = nodes
    assert mesh.plan().decisions == []  # here, but nothing loaded yet
    mesh.now = 100.0
    assert mesh.plan().decisions == []


def test_failed_replica_goes_to_another_node_after_a_backoff() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10])])
    mesh.apply(mesh.plan())
    assert mesh.on("a") == [("m", 0)]
    mesh.load(REPLICA_STATE_FAILED)
    assert mesh.plan().decisions == []
    mesh.now = 1.0
    mesh.apply(mesh.plan())
    assert (mesh.on("a"), mesh.on("b")) == ([], [("m", 0)])
    mesh.load(REPLICA_STATE_FAILED)
    mesh.plan()
    mesh.now = 2.5
    assert mesh.plan().decisions == []  # the second failure waits longer
    mesh.now = 3.0
    mesh.apply(mesh.plan())
    assert mesh.on("a") == [("m", 0)]
    assert [failed_backoff_s(count, PATIENCE) for count in (1, 2, 3, 7, 2000)] == [1, 2, 4, 60, 60]


def test_doubled_replicas_part_when_a_node_comes() -> None:
    mesh = Mesh([node("a")], [model("m", [10], 2)])
    mesh.settle()
    assert mesh.on("a") == [("m", 0)] * 2
    mesh.nodes["b"] = node("b")
    plan = mesh.plan()
    assert [decision.assignment.node_id for decision in plan.decisions] == ["b"]
    mesh.apply(plan)
    assert mesh.plan().decisions == []  # the old ones stay until the new one serves
    mesh.load()
    mesh.settle()
    assert (mesh.on("a"), mesh.on("b")) == ([("m", 0)], [("m", 0)])


def test_a_draining_node_keeps_its_replica_until_it_is_replaced() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10])])
    mesh.settle()
    mesh.nodes["a"].draining = True
    mesh.apply(mesh.plan())
    assert (mesh.on("a"), mesh.on("b")) == ([("m", 0)], [("m", 0)])
    mesh.load()
    mesh.settle()
    assert (mesh.on("a"), mesh.on("b")) == ([], [("m", 0)])


def test_history_forgets() -> None:
    mesh = Mesh([node("a")], [model("m", [10])])
    mesh.apply(mesh.plan())
    mesh.load(REPLICA_STATE_FAILED)
    mesh.plan()
    assert mesh.history.failures_at(mesh.models["m"], 0, "a") == 1
    mesh.load(REPLICA_STATE_READY)
    mesh.plan()
    assert mesh.history.failures_at(mesh.models["m"], 0, "a") == 0
    assert mesh.history.failed_since == {}


def test_doubled_replicas_stay_when_the_other_node_fails_them() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10])])
    mesh.apply(mesh.plan())
    mesh.load(REPLICA_STATE_FAILED)  # on a
    mesh.plan()
    mesh.now = 10.0
    mesh.apply(mesh.plan())
    mesh.settle()
    assert (mesh.on("a"), mesh.on("b")) == ([], [("m", 0)])
    del mesh.nodes["a"]
    mesh.models["m"].replicas[:] = [2]
    mesh.settle()
    assert mesh.on("b") == [("m", 0)] * 2
    mesh.nodes["a"] = node("a")
    assert mesh.plan().decisions == []


def test_doubled_replicas_do_not_part_while_they_load() -> None:
    mesh = Mesh([node("a")], [model("m", [10], 2)])
    mesh.apply(mesh.plan())
    mesh.nodes["b"] = node("b")
    assert mesh.plan().decisions == []


def test_scaling_down_takes_the_replica_of_an_absent_node_first() -> None:
    mesh = Mesh([node("a"), node("b", 5_000)], [model("m", [10], 3)])
    mesh.settle()
    assert len(mesh.on("b")) == 1
    mesh.lose("b")
    (lost,) = [held.replica_id for held in mesh.assignments.values() if held.node_id == "b"]
    mesh.models["m"].replicas[:] = [2]
    assert [decision.replica_id for decision in mesh.plan().decisions] == [lost]


def test_idle_nodes_that_come_late_get_their_share() -> None:
    mesh = Mesh([node("a"), node("b")], [model("m", [10, 10], 2)])
    mesh.settle()
    mesh.nodes |= {"c": node("c"), "d": node("d")}
    mesh.apply(mesh.plan())
    mesh.apply(mesh.plan())
    assert len(mesh.assignments) == 6
    assert mesh.plan().decisions == []  # the new ones load; until they serve nothing goes
    mesh.load()
    while (plan := mesh.plan()).decisions:
        mesh.apply(plan)
        ready = Counter(held.stage for held in mesh.assignments.values() if held.replica_id in mesh.replicas)
        assert min(ready.values()) == 2  # never less than wanted serve
        if len(mesh.assignments) > 4:
            mesh.load()
    assert [len(mesh.on(node_id)) for node_id in "abcd"] == [1, 1, 1, 1]


def test_an_idle_node_that_fails_a_replica_is_left_alone() -> None:
    mesh = Mesh([node("a")], [model("m", [10, 10])])
    mesh.settle()
    mesh.nodes["b"] = node("b")
    mesh.apply(mesh.plan())
    (stage,) = mesh.on("b")
    (moved,) = [held.replica_id for held in mesh.assignments.values() if held.node_id == "b"]
    mesh.load(REPLICA_STATE_FAILED, only=moved)
    mesh.apply(mesh.plan())
    assert mesh.on("a") == [("m", 0), ("m", 1)]
    assert stage not in mesh.on("b")
