from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.assign import Patience, Plan, decide, failed_backoff_s
from stagemesh.services.registry.board import Assign, Unassign
from stagemesh.services.registry.world import History, World, bytes_needed, observe

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
    REPLICA_STATE_LOADING,
    REPLICA_STATE_READY,
    Assignment,
    ModelSpec,
    NodeRecord,
    Partition,
    ReplicaRecord,
)

PATIENCE = Patience(node_grace_s=5, failed_backoff_s=1)


def model(name: str, sizes: list[int], replicas: int = 1, revision: str = "r1") -> ModelSpec:
    partitions = [
        Partition(first_layer=stage, end_layer=stage + 1, parameter_bytes=size)
        for stage, size in enumerate(sizes)
    ]
    return ModelSpec(
        name=name,
        revision=revision,
        partitions=partitions,
        replicas=[replicas] * len(sizes),
        checkpoint_dtype="F32",
        generation=1,
    )


def node(node_id: str, memory: int = 10_000, draining: bool = False) -> NodeRecord:
    return NodeRecord(node_id=node_id, memory_bytes=memory, device="cpu", draining=draining)


class Mesh:
    """Plays etcd and the nodes: applies decisions, and loads what is assigned when told to."""

    def __init__(self, nodes: list[NodeRecord], models: list[ModelSpec]) -> None:
        self.nodes = {item.node_id: item for item in nodes}
        self.models = {item.name: item for item in models}
        self.assignments: dict[str, Assignment] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.history = History()
        self.now = 0.0
        self.rng = Random(1)

    def world(self) -> World:
        return World(dict(self.models), dict(self.nodes), dict(self.assignments), dict(self.replicas))

    def plan(self) -> Plan:
        self.history = observe(self.history, self.world(), self.now)
        return decide(self.world(), self.history, PATIENCE, self.now, self.rng)

    def apply(self, plan: Plan) -> None:
        for decision in plan.decisions:
            if isinstance(decision, Assign):
                assert decision.assignment.replica_id not in self.assignments
                self.assignments[decision.assignment.replica_id] = decision.assignment
            else:
                gone = self.assignments.pop(decision.replica_id)
                assert gone.node_id == decision.node_id
                self.replicas.pop(decision.replica_id, None)
        self.check_memory()

    def check_memory(self) -> None:
        for item in self.nodes.values():
            used = sum(
                bytes_needed(self.models[held.model], held.partition, item)
                for held in self.assignments.values()
                if held.node_id == item.node_id and held.model in self.models
            )
            assert used <= item.memory_bytes

    def load(self, state: int = REPLICA_STATE_READY, only: str = "") -> None:
        for replica_id, held in self.assignments.items():
            if held.node_id in self.nodes and only in ("", replica_id):
                self.replicas[replica_id] = ReplicaRecord(
                    replica_id=replica_id,
                    model=held.model,
                    stage=held.stage,
                    revision=held.revision,
                    state=state,
                )

    def settle(self) -> Plan:
        self.load()
        for _ in range(40):
            plan = self.plan()
            self.apply(plan)
            self.load()
            if not plan.decisions:
                return plan
        raise AssertionError("it does not come to rest")

    def lose(self, node_id: str) -> None:
        del self.nodes[node_id]
        for replica_id, held in self.assignments.items():
            if held.node_id == node_id:
                self.replicas.pop(replica_id, None)

    def on(self, node_id: str) -> list[tuple[str, int]]:
        return sorted(
            (held.model, held.stage) for held in self.assignments.values() if held.node_id == node_id
        )

    def counts(self) -> Counter[tuple[str, int]]:
        return Counter((held.model, held.stage) for held in self.assignments.values())


SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=4)
MODELS = st.lists(st.tuples(SIZES, st.integers(1, 4)), min_size=1, max_size=3)


def models_of(drawn: list[tuple[list[int], int]]) -> list[ModelSpec]:
    return [model(f"m{number}", sizes, replicas) for number, (sizes, replicas) in enumerate(drawn)]


@given(MODELS, st.lists(st.integers(0, 2_000), min_size=0, max_size=5))
@settings(deadline=None)
def test_rests_within_memory_and_what_is_pending_fits_nowhere(drawn, memories) -> None:
    mesh = Mesh([node(f"n{number}", memory) for number, memory in enumerate(memories)], models_of(drawn))
    plan = mesh.settle()  # checks the memory at every step
    assert mesh.plan().decisions == []
    for spec in mesh.models.values():
        lacking = 0
        for stage, partition in enumerate(spec.partitions):
            have = mesh.counts()[spec.name, stage]
            assert have <= spec.replicas[stage]
            lacking += spec.replicas[stage] - have
            if have < spec.replicas[stage]:
                for item in mesh.nodes.values():
                    used = sum(
                        bytes_needed(mesh.models[held.model], held.partition, item)
                        for held in mesh.assignments.values()
                        if held.node_id == item.node_id
                    )
                    assert item.memory_bytes - used < bytes_needed(spec, partition, item)
        assert len(plan.pending.get(spec.name, [])) == lacking


@given(MODELS, st.integers(1, 6))
@settings(deadline=None)
def test_with_enough_memory_every_replica_is_placed_and_spread(drawn, count: int) -> None:
    mesh = Mesh([node(f"n{number}", 10**6) for number in range(count)], models_of(drawn))
    assert mesh.settle().pending == {}
    for spec in mesh.models.values():
        for stage, wanted in enumerate(spec.replicas):
            homes = Counter(
                held.node_id
                for held in mesh.assignments.values()
                if (held.model, held.stage) == (spec.name, stage)
            )
            assert sum(homes.values()) == wanted
            assert len(homes) == min(wanted, count)


@given(MODELS, st.integers(1, 5), st.lists(st.integers(1, 4), min_size=3, max_size=3), st.randoms())
@settings(deadline=None)
def test_scaling_down_never_takes_the_last_ready_replica(drawn, count, wanted, random) -> None:
    mesh = Mesh([node(f"n{number}", 10**6) for number in range(count)], models_of(drawn))
    mesh.settle()
    for replica_id in sorted(mesh.assignments):
        mesh.load(random.choice([REPLICA_STATE_LOADING, REPLICA_STATE_READY]), only=replica_id)
    before = Counter(
        (held.model, held.stage)
        for replica_id, held in mesh.assignments.items()
        if mesh.replicas[replica_id].state == REPLICA_STATE_READY
    )
    for spec, replicas in zip(mesh.models.values(), wanted, strict=False):
        spec.replicas[:] = [replicas] * len(spec.partitions)
    for _ in range(6):
        mesh.apply(mesh.plan())
        after = Counter(
            (held.model, held.stage)
            for replica_id, held in mesh.assignments.items()
            if replica_id in mesh.replicas and mesh.replicas[replica_id].state == REPLICA_STATE_READY
        )
        for key, ready in before.items():
            assert after[key] >= min(ready, mesh.models[key[0]].replicas[key[1]])
    mesh.settle()
    for spec in mesh.models.values():
        assert [mesh.counts()[spec.name, stage] for stage in range(len(spec.partitions))] == list(
            spec.replicas
        )


@given(
    MODELS,
    st.lists(st.sampled_from(["lose", "join", "drain", "scale", "redeploy", "drop"]), max_size=8),
    st.randoms(),
)
@settings(deadline=None)
def test_comes_to_rest_after_any_history(drawn, events, random) -> None:
    mesh = Mesh([node(f"n{number}", 2_000) for number in range(4)], models_of(drawn))
    mesh.settle()
    for number, event in enumerate(events):
        if event == "lose" and mesh.nodes:
            mesh.lose(random.choice(sorted(mesh.nodes)))
        elif event == "join":
            mesh.nodes[f"j{number}"] = node(f"j{number}", 2_000)
        elif event == "drain" and mesh.nodes:
            mesh.nodes[random.choice(sorted(mesh.nodes))].draining = True
        elif event == "scale" and mesh.models:
            spec = mesh.models[random.choice(sorted(mesh.models))]
            spec.replicas[:] = [random.randint(1, 4) for _ in spec.replicas]
        elif event == "redeploy" and mesh.models:
            name = random.choice(sorted(mesh.models))
            mesh.models[name] = model(name, [100] * random.randint(1, 3), 2, revision=f"r{number}")
        elif event == "drop" and mesh.models:
            del mesh.models[random.choice(sorted(mesh.models))]
        mesh.settle()
        mesh.now += 6
        mesh.settle()
        assert all(held.model in mesh.models for held in mesh.assignments.values())
        assert all(held.node_id in mesh.nodes for held in mesh.assignments.values())


def test_two_stages_twice_on_four_nodes_that_differ_a_little() -> None:
    nodes = [node(f"n{number}", 10**9 + number * 10**6) for number in range(4)]
    mesh = Mesh(nodes, [model("m", [1000, 1000], 2)])
    mesh.settle()
    assert all(len(mesh.on(item.node_id)) == 1 for item in nodes)


def test_more_memory_takes_more() -> None:
    mesh = Mesh([node("small", 500), node("large", 5_000)], [model("m", [100] * 6)])
    mesh.settle()
    assert len(mesh.on("large")) > len(mesh.on("small"))


def test_memory_counts_the_dtype_computed_in() -> None:
    spec = model("m", [1000])
    spec.checkpoint_dtype = "BF16"
    assert bytes_needed(spec, spec.partitions[0], node("n")) == 2400
    gpu = NodeRecord(node_id="g", device="cuda", memory_bytes=1)
    assert bytes_needed(spec, spec.partitions[0], gpu) == 1200
    spec.dtype = "F16"
    assert bytes_needed(spec, spec.partitions[0], node("n")) == 1200


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


@pytest.mark.parametrize("draining", [False, True])
def test_pending_without_nodes(draining: bool) -> None:
    mesh = Mesh([node("a", draining=True)] if draining else [], [model("m", [10])])
    (line,) = mesh.settle().pending["m"]
    assert line == "stage 0, replica 1 of 1: no node is there" + (" (1 draining)" if draining else "")


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


def test_a_failed_replica_of_an_old_revision_goes_at_once() -> None:
    mesh = Mesh([node("a")], [model("m", [10])])
    mesh.apply(mesh.plan())
    mesh.load(REPLICA_STATE_FAILED)
    mesh.models["m"] = model("m", [10], revision="r2")
    plan = mesh.plan()
    assert [type(decision) for decision in plan.decisions] == [Unassign, Assign]


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
