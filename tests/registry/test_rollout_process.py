"""Rollouts by real registries and a real etcd."""

import asyncio

import grpc
import pytest

from stagemesh import records
from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_LOADING,
    REPLICA_STATE_READY,
    ROLLOUT_ACTION_ABORT,
    ROLLOUT_ACTION_PROMOTE,
    ROLLOUT_STATE_DONE,
    ROLLOUT_STATE_LOADING,
    ROLLOUT_STATE_ROLLED_BACK,
    EventRecord,
    ModelSpec,
    RecutRequest,
    ReplicaRecord,
    RolloutRequest,
)
from tests.registry.test_registry_process import deploy


async def stored(etcd) -> ModelSpec:
    return records.from_json((await etcd.get(records.model_key("demo"))).value, ModelSpec)


async def until_state(etcd, state: int) -> ModelSpec:
    async with asyncio.timeout(20):
        while (spec := await stored(etcd)).rollout.state != state:
            await asyncio.sleep(0.05)
    return spec


async def loaded(node) -> None:
    """What the node was told to load is ready."""
    node.outcome = lambda assignment: REPLICA_STATE_READY
    for item in list(node.assigned.values()):
        key = records.replica_key("demo", item.stage, item.replica_id)
        record = records.from_json((await node.etcd.get(key)).value, ReplicaRecord)
        record.state = REPLICA_STATE_READY
        await node.lease.put(key, records.to_json(record))


async def test_the_next_leader_finishes_a_rollout(start_registry, start_node, until, etcd) -> None:
    node = await start_node("n0")
    first = await start_registry()
    await until(first.led)
    second = await start_registry()
    old = (await first.stub.Deploy(deploy(stages=1, replicas=1))).model
    async with asyncio.timeout(20):
        while (found := await etcd.get_prefix(records.REPLICAS)) and not found[0]:
            await asyncio.sleep(0.02)
    await until(lambda: len(node.assigned) == 1)
    node.outcome = lambda assignment: REPLICA_STATE_LOADING
    # The mirror has to know that it serves: else it would be replaced at once.
    await asyncio.sleep(0.5)
    wanted = deploy(stages=1, replicas=1, dtype="BF16")
    spec = (await first.stub.Deploy(wanted)).model
    assert spec.rollout.state == ROLLOUT_STATE_LOADING
    await until(lambda: len(node.assigned) == 2)
    first.kill()
    await until(second.led)
    assert (await stored(etcd)).revision == old.revision
    await loaded(node)
    done = await until_state(etcd, ROLLOUT_STATE_DONE)
    assert done.revision == spec.rollout.to_revision
    await until(lambda: len(node.assigned) == 1)
    events, _ = await etcd.get_prefix(records.EVENTS)
    kinds = [records.from_json(item.value, EventRecord).kind for item in events]
    assert [kind for kind in kinds if kind.startswith("rollout")] == [
        "rollout.begun",
        "rollout.share",
        "rollout.draining",
        "rollout.done",
    ]
    # Asked for again, nothing happens.
    again = (await second.stub.Deploy(wanted)).model
    assert (again.generation, rolls_out(again)) == (done.generation, False)


async def test_an_operator_decides(start_registry, start_node, until, etcd) -> None:
    node = await start_node("n0")
    registry = await start_registry()
    old = (await registry.stub.Deploy(deploy(stages=1, replicas=1))).model
    await until(lambda: len(node.assigned) == 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.stub.Rollout(RolloutRequest(name="demo", action=ROLLOUT_ACTION_ABORT))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    await asyncio.sleep(0.5)
    for action, state in (
        (ROLLOUT_ACTION_ABORT, ROLLOUT_STATE_ROLLED_BACK),
        (ROLLOUT_ACTION_PROMOTE, ROLLOUT_STATE_DONE),
    ):
        # An hour at each share, but for what the operator says.
        request = deploy(stages=1, replicas=1, dtype="BF16", canary=0.1, canary_s=3600)
        spec = (await registry.stub.Deploy(request)).model
        assert rolls_out(spec)
        await until(lambda: len(node.assigned) == 2)
        with pytest.raises(grpc.aio.AioRpcError, match="under way"):
            await registry.stub.Recut(RecutRequest(name="demo"))
        await registry.stub.Rollout(RolloutRequest(name="demo", action=action))
        after = await until_state(etcd, state)
        await until(lambda: len(node.assigned) == 1)
        assert (after.revision == old.revision) == (action == ROLLOUT_ACTION_ABORT)
        await asyncio.sleep(0.3)
