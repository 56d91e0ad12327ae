"""From any state the plan comes to rest, within memory, and never takes what serves."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stagemesh.services.registry.world import bytes_needed

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_LOADING,
    REPLICA_STATE_READY,
    ModelSpec,
    NodeRecord,
)
from tests.registry.assigned import Mesh, model, node

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


@pytest.mark.parametrize("draining", [False, True])
def test_pending_without_nodes(draining: bool) -> None:
    mesh = Mesh([node("a", draining=True)] if draining else [], [model("m", [10])])
    (line,) = mesh.settle().pending["m"]
    assert line == "stage 0, replica 1 of 1: no node is there" + (" (1 draining)" if draining else "")
