"""Identical requests at once through real routers and a real cache: one computes."""

import asyncio
from contextlib import AsyncExitStack, aclosing

import numpy as np
import pytest
from stagemesh.services.router.cache import client as cache_client
from stagemesh.services.router.config import RouterConfig
from stagemesh.services.router.core import RouterCore

from stagemesh import records
from stagemesh.errors import StagemeshError
from stagemesh.v1.inference_pb2 import CacheStatus

from .conftest import eventually
from .real_cache import RealCache
from .scripted_stage import ScriptedStage
from .specs import model, replica
from .test_core_generate import answer, ask, text_of
from .test_core_infer import ask as tensors

HIT, MISS = CacheStatus.CACHE_STATUS_HIT, CacheStatus.CACHE_STATUS_MISS
BYPASS, ERROR = CacheStatus.CACHE_STATUS_BYPASS, CacheStatus.CACHE_STATUS_ERROR


class Gate(ScriptedStage):
    """Answers when it is told to; `fail` sessions end with an error instead."""

    def __init__(self):
        super().__init__("good")
        self.free = asyncio.Event()
        self.fail = 0

    async def _misbehave(self, index, context):
        await self.free.wait()
        if self.fail:
            self.fail -= 1
            raise ValueError("scripted")

    @property
    def sessions(self):
        return len(self.opened)


class Mesh:
    """Routers on one etcd, a gated stage, and real caches."""

    def __init__(self, etcd, checkpoint, stack):
        self.etcd = etcd
        self.checkpoint = checkpoint
        self.stack = stack
        self.stage = None

    async def put(self, record):
        if record.DESCRIPTOR.name == "ModelSpec":
            key = records.model_key(record.name)
        elif record.DESCRIPTOR.name == "ReplicaRecord":
            key = records.replica_key(record.model, record.stage, record.replica_id)
        else:
            key = records.service_key(record.kind, record.id)
        await self.etcd.put(key, records.to_json(record))

    async def start(self, routers=1, caches=1, ttl_s=20.0, task="generate", **config):
        self.stage = await self.stack.enter_async_context(Gate())
        await self.put(replica("0a", 0, 2, address=self.stage.address))
        await self.put(replica("1a", 1, 2, address="127.0.0.1:9"))
        await self.put(model(task=task, source=str(self.checkpoint), cache=True))
        self.caches = []
        for number in range(caches):
            cache = RealCache(self.etcd, f"real{number}", ttl_s)
            self.caches.append(await self.stack.enter_async_context(cache))
            await self.put(cache.record)
        cores = []
        for _ in range(routers):
            settings = RouterConfig(**{"etcd": "x:1", "lease_ttl_s": 1, "cache_timeout_ms": 20_000, **config})
            cores.append(await self.stack.enter_async_context(RouterCore(settings, self.etcd)))
        return cores


@pytest.fixture
async def mesh(etcd, checkpoint):
    async with AsyncExitStack() as stack:
        yield Mesh(etcd, checkpoint, stack)


def waiting(mesh, count):
    return lambda: sum(cache.flights.leases.waiting for cache in mesh.caches) == count


async def test_many_at_two_routers_compute_once(mesh):
    one, two = await mesh.start(routers=2)
    asked = [asyncio.create_task(answer(core, ask())) for core in [one, two] * 6]
    await eventually(waiting(mesh, 11), 20)
    mesh.stage.free.set()
    answers = await asyncio.gather(*asked)
    assert mesh.stage.sessions == 1
    assert sorted(chunks[0].cache for chunks in answers) == [HIT] * 11 + [MISS]
    assert {text_of(chunks) for chunks in answers} == {"w10 w11 w12 w13"}
    assert {chunks[-1].usage.completion_tokens for chunks in answers} == {4}
    (cache,) = mesh.caches
    assert (cache.flown.computed, cache.flown.coalesced, cache.flown.taken_over) == (1, 11, 0)
    assert len(one._cache._leases) == len(two._cache._leases) == 0


async def test_a_failing_computer_hands_over_and_does_not_fail_the_others(mesh, hopeless):
    (core,) = await mesh.start()
    asked = [asyncio.create_task(answer(core, ask())) for _ in range(5)]
    await eventually(waiting(mesh, 4), 20)
    mesh.stage.fail = 2  # a fault of the mesh is looked at from two sides
    mesh.stage.free.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    failed = [each for each in answers if isinstance(each, StagemeshError)]
    assert len(failed) == 1, answers
    good = [each for each in answers if not isinstance(each, BaseException)]
    assert sorted(chunks[0].cache for chunks in good) == [HIT, HIT, HIT, MISS]
    assert mesh.caches[0].flown.taken_over == 1


async def test_a_cancelled_computer_hands_over(mesh):
    one, two = await mesh.start(routers=2)
    first = asyncio.create_task(answer(one, ask()))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    others = [asyncio.create_task(answer(two, ask())) for _ in range(3)]
    await eventually(waiting(mesh, 3), 20)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    # Long before its time: it was given back.
    await eventually(lambda: mesh.stage.sessions == 2, 10)
    mesh.stage.free.set()
    assert sorted(chunks[0].cache for chunks in await asyncio.gather(*others)) == [HIT, HIT, MISS]
    assert mesh.stage.sessions == 2


async def test_a_stream_that_its_reader_leaves_hands_over_too(mesh):
    one, two = await mesh.start(routers=2)
    mesh.stage.free.set()
    async with aclosing(one.generate(ask(40, prompt="w1", ignore_eos=True), one.context({}, 30))) as left:
        await anext(left)
        mesh.stage.free.clear()
        other = asyncio.create_task(answer(two, ask(40, prompt="w1", ignore_eos=True)))
        await eventually(waiting(mesh, 1), 20)
    mesh.stage.free.set()
    assert len(await other) > 1
    assert mesh.caches[0].flown.taken_over == 1


async def test_a_router_that_is_silent_is_given_up_for_the_next(mesh, monkeypatch):
    one, two = await mesh.start(routers=2, ttl_s=0.4)
    # As if it were frozen: it renews nothing, and gives nothing back.
    monkeypatch.setattr(one._cache._leases, "hold", lambda lease: None)
    frozen = asyncio.create_task(answer(one, ask()))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    other = asyncio.create_task(answer(two, ask()))
    await eventually(lambda: mesh.stage.sessions == 2, 20)
    # The one that renews keeps it for many times its length.
    third = asyncio.create_task(answer(two, ask()))
    await eventually(waiting(mesh, 1), 20)
    await asyncio.sleep(1.5)
    assert mesh.stage.sessions == 2
    mesh.stage.free.set()
    answers = await asyncio.gather(frozen, other, third)
    assert [chunks[0].cache for chunks in answers] == [MISS, MISS, HIT]


async def test_a_wait_ends_and_the_request_computes(mesh):
    (core,) = await mesh.start(cache_wait_s=0.2)
    first = asyncio.create_task(answer(core, ask()))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    second = asyncio.create_task(answer(core, ask()))
    await eventually(lambda: mesh.stage.sessions == 2, 20)
    mesh.stage.free.set()
    assert [chunks[0].cache for chunks in await asyncio.gather(first, second)] == [MISS, MISS]


async def test_so_many_wait_and_no_more(mesh, monkeypatch):
    monkeypatch.setattr(cache_client, "MAX_WAITS", 2)
    (core,) = await mesh.start()
    asked = [asyncio.create_task(answer(core, ask())) for _ in range(5)]
    await eventually(lambda: mesh.stage.sessions == 3, 20)
    await eventually(waiting(mesh, 2), 20)
    mesh.stage.free.set()
    assert sorted(chunks[0].cache for chunks in await asyncio.gather(*asked)) == [HIT, HIT] + [MISS] * 3


async def test_a_cache_lost_under_those_who_wait_leaves_the_work_to_another(mesh):
    (core,) = await mesh.start(caches=2)
    asked = [asyncio.create_task(answer(core, ask())) for _ in range(6)]
    await eventually(waiting(mesh, 5), 20)
    lost = max(mesh.caches, key=lambda cache: cache.flights.leases.waiting)
    await lost.door.stop(0)
    (left,) = [cache for cache in mesh.caches if cache is not lost]
    await eventually(lambda: left.flights.leases.waiting == 4, 20)
    assert mesh.stage.sessions == 2
    mesh.stage.free.set()
    answers = await asyncio.gather(*asked)
    assert {text_of(chunks) for chunks in answers} == {"w10 w11 w12 w13"}
    assert mesh.stage.sessions == 2
    # What the first one computed went to the other cache, too: the next one hits.
    assert (await answer(core, ask()))[0].cache == HIT


async def test_who_will_not_store_takes_no_lease(mesh):
    (core,) = await mesh.start()
    first = asyncio.create_task(answer(core, ask(cache_no_store=True)))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    second = asyncio.create_task(answer(core, ask()))
    await eventually(lambda: mesh.stage.sessions == 2, 20)
    mesh.stage.free.set()
    assert [chunks[0].cache for chunks in await asyncio.gather(first, second)] == [MISS, MISS]
    assert mesh.caches[0].flown.computed == 1


async def test_tensors_are_computed_once_too(mesh):
    (core,) = await mesh.start(task="embed")
    request = tensors(np.array([[1, 2]]))
    asked = [asyncio.create_task(core.infer(request, core.context({}, 30))) for _ in range(4)]
    await eventually(waiting(mesh, 3), 20)
    mesh.stage.free.set()
    answers = await asyncio.gather(*asked)
    assert sorted(each.cache for each in answers) == [HIT, HIT, HIT, MISS]
    assert len({each.outputs[0].data for each in answers}) == 1
    assert len(mesh.stage.forwarded) == 1


async def test_an_invalidated_answer_is_not_stored_by_who_began_before(mesh):
    (core,) = await mesh.start()
    first = asyncio.create_task(answer(core, ask()))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    cache = core.channels.cache(mesh.caches[0].record.address)
    await cache.Invalidate(cache_client.cache_pb2.CacheInvalidateRequest(tag="model:m"), timeout=10)
    mesh.stage.free.set()
    await first
    await asyncio.gather(*core._cache._stores)
    assert len(mesh.caches[0].store) == 0
    assert (await answer(core, ask()))[0].cache == MISS
    await asyncio.gather(*core._cache._stores)
    assert (await answer(core, ask()))[0].cache == HIT
