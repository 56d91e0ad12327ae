"""Requests to a model that sleeps: held and answered, refused beyond the bound, and gone when their callers are."""

import asyncio
import time

import pytest
from stagemesh.services.router.context import RequestContext

from stagemesh.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from stagemesh.grpc_server import GrpcServer
from stagemesh.v1 import inference_pb2, registry_pb2, registry_pb2_grpc

from .conftest import eventually
from .specs import listing, replica

pytestmark = pytest.mark.asyncio

SLEEPS = {"scaling": registry_pb2.Scaling(min_replicas=0, max_replicas=1)}


class ScriptedRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Counts calls of Wake; `mode` says what becomes of them."""

    def __init__(self, name, mode="good"):
        self.name, self.mode = name, mode
        self.woken = []
        self.door = GrpcServer("127.0.0.1", 0)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(self, self.door.server)

    async def __aenter__(self):
        self.address = f"127.0.0.1:{await self.door.start(['stagemesh.v1.RegistryService'])}"
        return self

    async def __aexit__(self, *_):
        await self.door.stop(0)

    async def Wake(self, request, context):
        self.woken.append(request.name)
        if self.mode == "refuse":
            raise FailedPrecondition("the model may not be woken")
        return registry_pb2.WakeResponse(woken=True)

    @property
    def record(self):
        return registry_pb2.ServiceRecord(kind="registry", id=self.name, address=self.address)


async def asleep(mesh, *, mode="good", **config):
    """A core whose model `m` sleeps, and a registry."""
    registry = await mesh.enter(ScriptedRegistry("r1", mode))
    await mesh.put(registry.record)
    core = await mesh.start({"0a": "good"}, spec=SLEEPS, **config)
    for record in ("0a", "1a", "1b"):
        await mesh.etcd.delete(f"/stagemesh/v1/replicas/m/{record[0]}/{record}")
    await mesh.etcd.put("/stagemesh/v1/scales/m", b'{"model":"m","replicas":[0,0]}')
    (spec,) = core.membership.models.values()
    await eventually(lambda: not core.membership.is_ready(spec) and core.membership.asleep(spec))
    return core, registry


async def wake(mesh):
    """What a registry and the nodes do."""
    records = [replica("0a", 0, address=mesh.stages["0a"].address), replica("1a", 1, address="127.0.0.1:9")]
    for key, value in listing(*records).items():
        await mesh.etcd.put(key, value)


def ask():
    return inference_pb2.GenerateRequest(model="m", tokens=inference_pb2.TokenIds(ids=[1, 2]), max_tokens=3)


async def answer(core, within_s=30.0):
    ctx = RequestContext(request_id="r", tenant="", deadline=time.monotonic() + within_s)
    return [token.id async for chunk in core.generate(ask(), ctx) for token in chunk.tokens]


async def test_requests_wait_for_one_call_and_are_all_answered(mesh):
    core, registry = await asleep(mesh)
    (info,) = core.models()
    assert (info.ready, info.asleep) == (False, True)
    asked = [asyncio.create_task(answer(core)) for _ in range(5)]
    await eventually(lambda: core.waking.held_of("m") == 5 and registry.woken)
    await wake(mesh)
    assert await asyncio.gather(*asked) == [[10, 11, 12]] * 5
    assert registry.woken == ["m"]
    assert core.waking.held == 0
    # Now it is awake, and nobody is asked.
    assert await answer(core) == [10, 11, 12]
    assert registry.woken == ["m"]


async def test_stateless_requests_are_held_too(mesh):
    registry = await mesh.enter(ScriptedRegistry("r1"))
    await mesh.put(registry.record)
    core = await mesh.start({"0a": "good"}, task="embed", spec=SLEEPS)
    await mesh.etcd.delete("/stagemesh/v1/replicas/m/0/0a")
    (spec,) = core.membership.models.values()
    await eventually(lambda: not core.membership.is_ready(spec))
    request = inference_pb2.EmbedRequest(model="m", tokens=[inference_pb2.TokenIds(ids=[1, 2])])
    ctx = RequestContext(request_id="r", tenant="", deadline=time.monotonic() + 30)
    asked = asyncio.create_task(core.embed(request, ctx))
    await eventually(lambda: core.waking.held and registry.woken)
    await wake(mesh)
    assert (await asked).embeddings.shape == [1, 4]


async def test_the_deadline_bounds_it(mesh):
    core, _ = await asleep(mesh)
    with pytest.raises(DeadlineExceeded, match="slept"):
        await answer(core, 0.3)
    assert core.waking.held == 0
    assert "'m'" not in repr(core.waking)


async def test_beyond_the_bound_a_caller_is_told_when_to_come_again(mesh):
    core, _ = await asleep(mesh, max_held=2)
    held = [asyncio.create_task(answer(core)) for _ in range(2)]
    await eventually(lambda: core.waking.held == 2)
    with pytest.raises(ResourceExhausted) as refused:
        await answer(core)
    assert refused.value.retry_after_s
    await wake(mesh)
    await asyncio.gather(*held)


async def test_whoever_leaves_is_not_held_and_the_last_one_ends_the_call(mesh):
    core, registry = await asleep(mesh)
    asked = [asyncio.create_task(answer(core)) for _ in range(2)]
    await eventually(lambda: core.waking.held == 2 and registry.woken)
    asked[0].cancel()
    await asyncio.gather(asked[0], return_exceptions=True)
    assert core.waking.held == 1
    task = core.waking._wakes["m"].task
    asked[1].cancel()
    await asyncio.gather(asked[1], return_exceptions=True)
    assert core.waking.held == 0
    assert core.waking._wakes == {}
    await eventually(task.done)


async def test_another_registry_is_asked_when_one_is_gone(mesh):
    core, registry = await asleep(mesh)
    gone = registry_pb2.ServiceRecord(kind="registry", id="r0", address="127.0.0.1:9")
    await mesh.put(gone)
    await eventually(lambda: len(core.membership.services_of("registry")) == 2)
    core.waking._rng.shuffle = lambda found: found.sort(key=lambda address: address != "127.0.0.1:9")
    asked = asyncio.create_task(answer(core))
    await eventually(lambda: registry.woken)
    await wake(mesh)
    assert await asked == [10, 11, 12]


async def test_what_the_registry_refuses_is_told_at_once(mesh):
    core, _ = await asleep(mesh, mode="refuse")
    with pytest.raises(FailedPrecondition, match="may not be woken"):
        await answer(core)


async def test_it_is_told_when_the_model_goes_meanwhile(mesh):
    core, registry = await asleep(mesh)
    asked = asyncio.create_task(answer(core))
    await eventually(lambda: registry.woken)
    await mesh.etcd.delete("/stagemesh/v1/models/m")
    with pytest.raises(NotFound):
        await asked


async def test_bad_input_wakes_nobody(mesh):
    core, registry = await asleep(mesh)
    ctx = RequestContext(request_id="r", tenant="", deadline=time.monotonic() + 30)
    bad = inference_pb2.GenerateRequest(model="m", tokens=inference_pb2.TokenIds(ids=[10**6]), max_tokens=3)
    with pytest.raises(InvalidArgument):
        async for _ in core.generate(bad, ctx):
            pass
    assert registry.woken == []
