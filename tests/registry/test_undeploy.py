"""A model and what was decided for it go together, whoever undeploys it, and whatever comes right after."""

import asyncio

from in_process import put_world, spec_of
from stagemesh.services.registry.mirror import Mirror
from stagemesh.services.registry.models import Models

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.v1.registry_pb2 import ModelSpec, ScaleRecord


def decided(*replicas: int) -> bytes:
    return records.to_json(ScaleRecord(model="m", replicas=replicas))


async def test_a_decision_for_a_model_deployed_again_outlives_the_removal_before(etcd, etcd_server) -> None:
    """The removal takes effect, its answer is slow, and the model is there again with a decision of its own."""
    slow = Etcd(etcd_server.endpoint)
    await slow.start()
    removed, go_on = asyncio.Event(), asyncio.Event()

    def held_up(method):
        async def call(*args, **more):
            answer = await method(*args, **more)
            removed.set()
            await go_on.wait()
            return answer

        return call

    slow.transact, slow.delete = held_up(slow.transact), held_up(slow.delete)
    mirror = Mirror(slow)
    following = asyncio.create_task(mirror.follow())
    await put_world(etcd, spec_of("m", 1, 1))
    await etcd.put(records.scale_key("m"), decided(2))
    await mirror.synced.wait()
    removing = asyncio.create_task(Models(slow, mirror).remove("m"))
    async with asyncio.timeout(20):
        await removed.wait()
    assert await etcd.get(records.scale_key("m")) is None, "both go at once"
    await put_world(etcd, spec_of("m", 1, 1))
    await etcd.put(records.scale_key("m"), decided(3))
    go_on.set()
    assert await removing
    found = await etcd.get(records.scale_key("m"))
    assert found is not None
    assert found.value == decided(3)
    async with asyncio.timeout(20):
        while list(mirror.world().scales["m"].replicas if mirror.world().scales else ()) != [3]:
            await asyncio.sleep(0.01)
    following.cancel()
    await slow.close()


async def test_a_model_that_changes_while_it_is_removed_goes_as_it_is_then(etcd, etcd_server) -> None:
    other = Etcd(etcd_server.endpoint)
    await other.start()
    models = Models(other, Mirror(other))
    await put_world(etcd, spec_of("m", 1, 1))
    transact, attempts = other.transact, 0

    async def changed_first(*args, **more):
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            again: ModelSpec = spec_of("m", 2, 1)
            await put_world(etcd, again)
        return await transact(*args, **more)

    other.transact = changed_first
    assert await models.remove("m")
    assert attempts == 2
    assert await etcd.get(records.model_key("m")) is None
    assert not await models.remove("m")
    await other.close()
