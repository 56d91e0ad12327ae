"""A model that the nodes have no room for is refused with the numbers; nothing is refused that would be placed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import node_of, spec_of
from stagemesh.services.registry.room import check_room
from stagemesh.services.registry.world import World

from stagemesh.errors import FailedPrecondition, ResourceExhausted, StagemeshError
from stagemesh.v1.registry_pb2 import REPLICA_STATE_READY, Assignment, ModelSpec, ReplicaRecord


def world_of(nodes, *models, held=()):
    """Nodes by memory; `held`: (node, model, stage), all ready."""
    assignments, replicas = {}, {}
    for number, (node, name, stage) in enumerate(held):
        spec = next(each for each in models if each.name == name)
        assignment = Assignment(
            replica_id=f"r{number}", node_id=node, model=name, stage=stage, stages=len(spec.partitions),
            partition=spec.partitions[stage], revision=spec.revision,
        )  # fmt: skip
        assignments[assignment.replica_id] = assignment
        replicas[assignment.replica_id] = ReplicaRecord(
            replica_id=assignment.replica_id, model=name, stage=stage, state=REPLICA_STATE_READY
        )
    return World(
        models={each.name: each for each in models},
        nodes={name: node_of(name, memory) for name, memory in nodes.items()},
        assignments=assignments,
        replicas=replicas,
    )


def revised(spec, revision):
    other = ModelSpec()
    other.CopyFrom(spec)
    other.revision = revision
    return other


def test_a_model_larger_than_any_node_is_refused_with_bytes_wanted_and_free() -> None:
    world = world_of({"a": 1000, "b": 800})
    with pytest.raises(FailedPrecondition) as caught:
        check_room(world, spec_of("big", 1, 1, 1000))
    assert caught.value.message == (
        "model 'big' needs 1200 bytes on one node, which the nodes are too small for: "
        "a has 1000 bytes of 1000 bytes free, b has 800 bytes of 800 bytes free"
    )
    with pytest.raises(
        FailedPrecondition, match="needs 600 bytes, 600 bytes, 600 bytes for its 3 stages, which the"
    ):
        check_room(world, spec_of("long", 3, 1, 500))
    check_room(world, spec_of("fits", 2, 1, 500))


def test_one_that_would_fit_but_for_others_is_told_who_holds_what() -> None:
    demo = spec_of("demo", 1, 2, 500)
    world = world_of({"a": 1000, "b": 1000}, demo, held=[("a", "demo", 0), ("b", "demo", 0)])
    with pytest.raises(ResourceExhausted) as caught:
        check_room(world, spec_of("m", 1, 1, 500))
    assert caught.value.message.startswith(
        "model 'm' needs 600 bytes on one node, for which there is no room: a has 400 bytes of 1000 bytes free, "
        "b has 400 bytes of 1000 bytes free; held by demo 1200 bytes. "
    )
    # What is wanted and not there yet is as good as taken.
    with pytest.raises(ResourceExhausted):
        check_room(world_of({"a": 1000, "b": 1000}, demo), spec_of("m", 1, 1, 500))


def test_further_replicas_may_wait_and_so_does_all_while_no_node_is_known() -> None:
    check_room(world_of({"a": 1000}), spec_of("m", 1, 50, 500))
    check_room(world_of({}), spec_of("m", 1, 1, 10**15))


def test_a_model_that_may_sleep_needs_room_only_when_it_wakes() -> None:
    demo = spec_of("demo", 1, 1, 500)
    world = world_of({"a": 1000}, demo, held=[("a", "demo", 0)])
    sleepy = spec_of("m", 1, 1, 500)
    sleepy.scaling.max_replicas = 1
    check_room(world, sleepy)
    awake = spec_of("m", 1, 1, 500)
    awake.scaling.min_replicas = 1
    with pytest.raises(ResourceExhausted):
        check_room(world, awake)
    sleepy.partitions[0].parameter_bytes = 5000
    with pytest.raises(FailedPrecondition):
        check_room(world, sleepy)


def test_the_same_partitions_again_need_no_more_room_and_a_new_revision_does() -> None:
    demo = spec_of("demo", 1, 1, 500)
    world = world_of({"a": 1000}, demo, held=[("a", "demo", 0)])
    more = ModelSpec()
    more.CopyFrom(demo)
    more.replicas[:] = [3]
    check_room(world, more)
    with pytest.raises(ResourceExhausted, match="held by demo \\(the revision that serves\\) 600 bytes"):
        check_room(world, revised(demo, "r2"))
    twice = world_of(
        {"a": 1000, "b": 1000}, spec_of("demo", 1, 2, 500), held=[("a", "demo", 0), ("b", "demo", 0)]
    )
    check_room(twice, revised(demo, "r2"))  # it may take the place of the second replica


def test_a_replica_that_moves_counts_once() -> None:
    """Both stages are on one node, and the other is idle: one of them is on its way there."""
    demo = spec_of("demo", 2, 1, 500)
    world = world_of({"a": 2000, "b": 700}, demo, held=[("a", "demo", 0), ("a", "demo", 1)])
    check_room(world, spec_of("m", 2, 1, 500))
    with pytest.raises(ResourceExhausted, match="held by demo 1200 bytes"):
        check_room(world, spec_of("m", 3, 1, 500))


@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 1500)), max_size=3),
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 2000)),
)
def test_the_answer_is_what_the_controller_would_do(memories, others, asked) -> None:
    """From any start: accepted means that one replica of each stage is placed beside what is there, refused that it is not."""
    from random import Random

    from stagemesh.services.registry.assign import Patience, decide
    from stagemesh.services.registry.board import Assign
    from stagemesh.services.registry.world import History

    models = [spec_of(f"o{n}", *each) for n, each in enumerate(others)]
    world = world_of({f"n{n}": memory for n, memory in enumerate(memories)}, *models)
    plan = decide(world, History(), Patience(), 0.0, Random(1))
    held = {
        each.assignment.replica_id: each.assignment for each in plan.decisions if isinstance(each, Assign)
    }
    world = World(models=world.models, nodes=world.nodes, assignments=held, replicas={})
    spec = spec_of("m", asked[0], 1, asked[2])
    after = World(models={**world.models, "m": spec}, nodes=world.nodes, assignments=held, replicas={})
    lacking = decide(after, History(), Patience(), 0.0, Random(2)).pending.get("m")
    more = ModelSpec()
    more.CopyFrom(spec)
    more.replicas[:] = [asked[1]] * asked[0]
    try:
        check_room(world, more)
    except StagemeshError as error:
        assert lacking, error.message  # noqa: PT017
    else:
        assert not lacking
