"""A running router follows what the model's spec in etcd says of its balance, without a restart."""

import asyncio
import time
from collections import Counter

from stagemesh.metrics import REGISTRY
from stagemesh.v1 import inference_pb2

from .conftest import eventually
from .specs import model, replica

FAST, SLOW = 1.0, 8.0


async def answers(core, count, metadata=None):
    """Who was the head of each of so many generations, one after the other."""
    heads = []
    for _ in range(count):
        request = inference_pb2.GenerateRequest(model="m", prompt="w1", max_tokens=1)
        async for chunk in core.generate(request, core.context(metadata or {}, 30.0)):
            if chunk.route:
                heads.append(chunk.route[0].replica_id)
    return heads


async def switch(mesh, **changed):
    """Write the spec anew, and wait until the router has it."""
    spec = model(source=str(mesh.checkpoint), **changed)
    await mesh.put(spec)
    await eventually(lambda: mesh.core.membership.models["m"] == spec)


async def test_policy_switches_while_it_runs(mesh):
    core = await mesh.start()
    for name, ms, zone in [("0a", FAST, "east"), ("0b", SLOW, "west")]:
        await mesh.put(replica(name, address=mesh.stages[name].address, canary_ms=ms, zone=zone))
    await eventually(lambda: core.membership.replicas["m/0/0b"].canary_ms == SLOW)
    await switch(mesh, policy="round_robin", generation=2)
    heads = await answers(core, 8)
    assert heads in (["0a", "0b"] * 4, ["0b", "0a"] * 4)
    await switch(mesh, policy="weighted", generation=3)
    assert Counter(await answers(core, 9)) == {"0a": 8, "0b": 1}
    heads = await answers(core, 6, {"x-stagemesh-policy": "round_robin"})
    assert Counter(heads) == {"0a": 3, "0b": 3}, "for one request"
    await switch(mesh, policy="round_robin", zones=["west"], generation=4)
    for stage in "ab":
        await mesh.put(replica(f"1{stage}", 1, address="127.0.0.1:9", zone="west"))
    await eventually(lambda: core.membership.replicas["m/1/1b"].zone == "west")
    assert set(await answers(core, 4)) == {"0b"}


async def test_status_tells_the_health_of_each_replica(mesh):
    core = await mesh.start({"0a": "good", "0b": "gone"})
    for _ in range(20):
        await answers(core, 1)
    status = await core.status()
    health = {each.record.replica_id: each.health for each in status.replicas}
    assert health["0a"] == "well"
    assert health["0b"] != "well"


async def test_a_replica_that_fails_is_ejected_and_counted(mesh):
    core = await mesh.start({"0a": "good", "0b": "gone", "0c": "good"}, spec={"name": "ejecting"})
    for name in ("0a", "0b", "0c"):
        await mesh.put(replica(name, name="ejecting", address=mesh.stages[name].address))
    for stage in "ab":
        await mesh.put(replica(f"1{stage}", 1, name="ejecting", address="127.0.0.1:9"))
    await eventually(lambda: core.membership.is_ready(core.membership.models["ejecting"]))

    async def one():
        request = inference_pb2.GenerateRequest(model="ejecting", prompt="w1", max_tokens=1)
        return [chunk async for chunk in core.generate(request, core.context({}, 30.0))]

    labels = {"model": "ejecting", "stage": "0", "replica": "0b"}
    async with asyncio.timeout(60):
        while not REGISTRY.get_sample_value("stagemesh_replica_ejected", labels):
            answers = await asyncio.gather(*(one() for _ in range(6)))
            assert all(chunks[-1].finish_reason for chunks in answers), "no request fails"
    assert core.loads.health.words("0b", time.monotonic()).startswith("ejected")
    before = len(mesh.stages["0b"].opened)
    await asyncio.gather(*(one() for _ in range(20)))
    assert len(mesh.stages["0b"].opened) == before
