"""What a node pool may still bring counts as room: only what it could never hold is refused."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import MIB, node_of, spec_of
from stagemesh.services.registry.growth import grown
from stagemesh.services.registry.rollout.begin import Way, begun
from stagemesh.services.registry.room import check_room
from stagemesh.services.registry.scaling.capacity import Bounds, Capacity
from stagemesh.services.registry.scaling_view import View
from stagemesh.services.registry.world import World
from test_registry_process import DEMO, deploy
from test_room import revised, world_of

from stagemesh import records
from stagemesh.errors import FailedPrecondition, ResourceExhausted, StagemeshError
from stagemesh.v1.registry_pb2 import (
    CapacityRecord,
    DeployRequest,
    EventRecord,
    ListDeploymentsRequest,
    ModelSpec,
)


def full(nodes: int = 1) -> World:
    """So many nodes of 1000 bytes, each filled by another model."""
    demo = spec_of("demo", 1, nodes, 800)
    return world_of(
        {f"n{n}": 1000 for n in range(nodes)}, demo, held=[(f"n{n}", "demo", 0) for n in range(nodes)]
    )


def test_what_waits_for_nodes_is_told_with_the_numbers() -> None:
    assert check_room(full(), spec_of("m", 1, 1, 500), most_nodes=2) == (
        "model 'm' needs 600 bytes on one node, and waits for nodes: n0 has 40 bytes of 1000 bytes free; "
        "held by demo 960 bytes; 1 nodes are there, 2 at most"
    )
    assert check_room(world_of({"a": 1000}), spec_of("m", 1, 1, 500), most_nodes=2) == ""


def test_what_the_whole_pool_could_not_hold_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match=r"too small for: .*; 1 nodes are there, 4 at most"):
        check_room(full(), spec_of("m", 1, 1, 1000), most_nodes=4)
    check_room(full(), spec_of("m", 3, 1, 800), most_nodes=4)
    with pytest.raises(FailedPrecondition):
        check_room(full(), spec_of("m", 5, 1, 800), most_nodes=4)
    # Four would hold it, but of four one is taken.
    with pytest.raises(ResourceExhausted, match=r"no room: .*; 1 nodes are there, 4 at most"):
        check_room(full(), spec_of("m", 4, 1, 800), most_nodes=4)
    with pytest.raises(ResourceExhausted):
        check_room(full(2), spec_of("m", 1, 1, 500), most_nodes=2)


def test_what_others_wait_for_is_not_given_twice() -> None:
    world = full()
    waiting = spec_of("first", 1, 1, 800)
    world = World({**world.models, "first": waiting}, world.nodes, world.assignments, world.replicas)
    check_room(world, spec_of("m", 1, 1, 800), most_nodes=3)
    with pytest.raises(ResourceExhausted):
        check_room(world, spec_of("m", 1, 1, 800), most_nodes=2)


def test_a_node_that_comes_is_like_those_where_the_model_may_be() -> None:
    world = World({}, {name: node_of(name, 1000, zone=name) for name in "ab"}, {}, {})
    there = spec_of("m", 3, 1, 800)
    there.zones[:] = ["b"]
    assert check_room(world, there, most_nodes=4).startswith("model 'm' needs 960 bytes, 960 bytes, 960")
    there.zones[:] = ["c"]
    with pytest.raises(FailedPrecondition, match="none of 2 nodes is where it may be; 2 nodes are there"):
        check_room(world, there, most_nodes=4)


@given(st.integers(1, 4), st.integers(0, 5), st.tuples(st.integers(1, 4), st.integers(1, 1000)))
def test_what_is_accepted_fits_once_the_pool_has_grown_and_what_is_refused_does_not(
    here, more, asked
) -> None:
    world, spec = full(here), spec_of("m", asked[0], 1, asked[1])
    later = World(
        world.models,
        {**world.nodes, **{f"z{n}": node_of(f"z{n}", 1000) for n in range(more)}},
        world.assignments,
        world.replicas,
    )
    kind: type[StagemeshError] | None
    try:
        check_room(later, spec)
    except StagemeshError as error:
        kind = type(error)
    else:
        kind = None
    if kind is None:
        check_room(world, spec, here + more)
    else:
        with pytest.raises(kind):
            check_room(world, spec, here + more)


def test_so_many_nodes_are_tried_as_could_be_of_use() -> None:
    assert len(grown(full(), spec_of("m", 3, 1), 100_000).nodes) == 4
    assert grown(World({}, {}, {}, {}), spec_of("m", 1, 1), 5).nodes == {}


def test_a_candidate_without_room_lets_the_pool_grow_for_one_of_each_stage() -> None:
    spec: ModelSpec = spec_of("m", 1, 3, 800)
    world = world_of({f"n{n}": 1000 for n in range(3)}, spec, held=[(f"n{n}", "m", 0) for n in range(3)])
    assert View(world).pending() == []
    rolls = begun(spec, revised(spec, "r2"), Way(), "", 0)
    assert View(replace(world, models={"m": rolls})).pending() == [960]


def test_for_what_no_node_of_the_pool_would_hold_none_is_started() -> None:
    capacity = Capacity(Bounds(least=1, most=9))
    assert capacity.decide([1200], [1000, 1000], 0, 0.0) is None
    wish = capacity.decide([1200, 900], [1000, 1000], 0, 0.0)
    assert wish is not None
    assert wish.nodes == 3


async def test_a_registry_with_a_pool_accepts_asks_for_a_node_and_places(
    start_registry, start_node, until, etcd
) -> None:
    """The demo's stage needs 25 MB computed in F32: a node of 32 MiB has room for one."""
    node = await start_node("n0", memory=32 * MIB)
    registry = await start_registry("--node-pool", "etcd", "--max-nodes", "2")
    await registry.stub.Deploy(deploy(stages=1, replicas=1))
    await until(lambda: len(node.assigned) == 1)
    second = DeployRequest(source=DEMO, name="second", stages=1)
    await registry.stub.Deploy(second)
    async with asyncio.timeout(20):
        while (capacity := await etcd.get(records.CAPACITY)) is None:
            await asyncio.sleep(0.05)
    assert records.from_json(capacity.value, CapacityRecord).nodes == 2

    async def pending() -> list[str]:
        deployments = (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
        return list(next(each.pending for each in deployments if each.model.name == "second"))

    # Who looks for nodes and who places write apart from one another.
    async with asyncio.timeout(20):
        while not (lines := await pending()):
            await asyncio.sleep(0.05)
    (line,) = lines
    assert f"of {32 * MIB} (n0)" in line

    async def waiting() -> list[EventRecord]:
        found, _ = await etcd.get_prefix(records.EVENTS)
        events = [records.from_json(each.value, EventRecord) for each in found]
        return [event for event in events if event.kind == "deploy.waits"]

    # An event is written beside the answer, not before it.
    async with asyncio.timeout(20):
        while not (told := await waiting()):
            await asyncio.sleep(0.05)
    (waits,) = told
    assert waits.model == "second"
    assert "and waits for nodes: n0 has" in waits.reason
    came = await start_node("n1", memory=32 * MIB)
    await until(lambda: len(came.assigned) == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.stub.Deploy(DeployRequest(source=DEMO, name="third", stages=1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 nodes are there, 2 at most" in caught.value.details()
