"""The open stream of lookups: each gets its own answer, and what goes wrong with it costs a call and no answer."""

import asyncio
import hashlib
import time

import pytest
from stagemesh.services.router.cache import lookups as lookups_module
from stagemesh.services.router.cache.client import HIT
from stagemesh.services.router.channels import Channels

from stagemesh.grpc_server import GrpcServer
from stagemesh.metrics import REGISTRY
from stagemesh.v1 import cache_pb2, cache_pb2_grpc
from stagemesh.v1.cache_pb2 import CacheLookups as Lookups

from .conftest import eventually
from .real_cache import RealCache
from .test_cache_flights import mesh
from .test_core_generate import answer, ask

__all__ = ["mesh"]


def key_of(number):
    return hashlib.sha256(b"%d" % number).digest()


def asking(number, **more):
    return cache_pb2.CacheLookupRequest(tenant="t", key=key_of(number), **more)


@pytest.fixture
async def cache(etcd):
    async with RealCache(etcd) as cache:
        for number in range(40):
            digest = hashlib.sha256(key_of(number) + b"v%d" % number).digest()
            cache.store.store("t", key_of(number), b"v%d" % number, digest, ttl_s=60, tags=())
        yield cache


@pytest.fixture
async def stream(cache):
    channels = Channels(2**24)
    yield channels.lookups(cache.record.address)
    await channels.close()


async def test_many_share_one_stream_and_each_gets_its_own_answer(cache, stream):
    answers = await asyncio.gather(*(stream.ask(asking(number), 10) for number in range(40)))
    assert [each.value for each in answers] == [b"v%d" % number for number in range(40)]
    missed = await stream.ask(asking(99, want_lease=True), 10)
    assert not missed.hit
    assert missed.lease
    assert len(cache.servicer._streams) == 1


async def test_an_answer_that_came_while_this_loop_stood_is_taken(cache, stream):
    assert await stream.ask(asking(0), 10)
    asked = asyncio.create_task(stream.ask(asking(1), 0.2))
    for _ in range(5):
        await asyncio.sleep(0)
    time.sleep(0.5)
    assert (await asked).value == b"v1"


async def test_lookups_of_one_moment_share_a_message(cache, stream, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        lookups_module, "CacheLookups", lambda lookups: sizes.append(len(lookups)) or Lookups(lookups=lookups)
    )
    await asyncio.gather(*(stream.ask(asking(number), 10) for number in range(40)))
    assert sum(sizes) == 40
    assert len(sizes) <= 2, "the first may go alone, the rest waits for it"


async def test_a_write_that_fails_for_any_reason_is_not_the_last(cache, stream, monkeypatch):
    def fails(lookups):
        raise ValueError("not to be expected")

    with monkeypatch.context() as broken:
        broken.setattr(lookups_module, "CacheLookups", fails)
        with pytest.raises(TimeoutError):
            await stream.ask(asking(1), 0.2)
    assert (await stream.ask(asking(1), 10)).value == b"v1"


async def test_answers_that_are_large_together_come_in_several_messages(cache):
    value = b"v" * 900_000
    for number in range(100, 110):
        digest = hashlib.sha256(key_of(number) + value).digest()
        assert not cache.store.store("t", key_of(number), value, digest, ttl_s=60, tags=())
    channels = Channels(2**22)  # a message may have 4 MiB
    stream = channels.lookups(cache.record.address)
    try:
        answers = await asyncio.gather(*(stream.ask(asking(number), 20) for number in range(100, 110)))
    finally:
        await channels.close()
    assert all(each is not None and each.value == value for each in answers)


async def test_a_malformed_lookup_costs_those_beside_it_no_lease(cache, stream):
    assert await stream.ask(asking(1), 10)
    bad = cache_pb2.CacheLookupRequest(tenant="t", key=b"short")
    found = await asyncio.gather(stream.ask(asking(90, want_lease=True), 10), stream.ask(bad, 10))
    assert found == [None, None]
    assert (await stream.ask(asking(90, want_lease=True), 10)).lease


async def test_who_leaves_early_disturbs_nobody(cache, stream):
    for leaves_after in (0, 1, 2, 3):
        asked = [asyncio.create_task(stream.ask(asking(number), 10)) for number in range(20)]
        for _ in range(leaves_after):
            await asyncio.sleep(0)
        for each in asked[::2]:
            each.cancel()
        await asyncio.gather(*asked[::2], return_exceptions=True)
        assert [(await each).value for each in asked[1::2]] == [b"v%d" % n for n in range(1, 20, 2)]
    assert len(cache.servicer._streams) == 1
    assert not stream._waiting
    await eventually(lambda: stream._writer is None)


async def test_what_waits_for_another_is_asked_by_a_call(cache, stream):
    assert await stream.ask(asking(99, want_lease=True, wait_ms=1000), 10) is None
    assert await stream.ask(asking(1), 10)
    cache.servicer._behind.answers = True  # a shared store, which may take its time
    misses = cache.store.stats.misses
    assert await stream.ask(asking(98), 10) is None
    assert cache.store.stats.misses == misses, "it is looked up once, by the call"


async def test_a_cache_that_leaves_is_not_held_up_and_one_that_comes_back_is_asked_again(cache, stream):
    assert await stream.ask(asking(1), 10)
    cache.servicer.end_streams()
    await eventually(lambda: stream._call is None)
    started = time.monotonic()
    assert await stream.ask(asking(2), 10), "it is there still: a new stream"
    cache.servicer.end_streams()
    await cache.door.stop(60)
    assert time.monotonic() - started < 30
    assert await stream.ask(asking(3), 10) is None


class Silent(cache_pb2_grpc.CacheServiceServicer):
    """A cache of before; or one whose stream takes everything and says nothing."""

    def __init__(self, hangs):
        self.hangs = hangs
        self.streams = 0

    async def Lookup(self, request, context):
        return cache_pb2.CacheLookupResponse()

    async def LookupStream(self, request_iterator, context):
        self.streams += 1
        if not self.hangs:
            await super().LookupStream(request_iterator, context)
        async for _ in request_iterator:
            pass
        yield cache_pb2.CacheAnswers()


@pytest.mark.parametrize("hangs", [False, True], ids=["of before", "silent"])
async def test_a_cache_that_does_not_answer_on_it(hangs):
    servicer, door, channels = Silent(hangs), GrpcServer("127.0.0.1", 0), Channels(2**24)
    cache_pb2_grpc.add_CacheServiceServicer_to_server(servicer, door.server)
    stream = channels.lookups(f"127.0.0.1:{await door.start(['stagemesh.v1.CacheService'])}")
    try:
        if hangs:
            with pytest.raises(TimeoutError):
                await stream.ask(asking(1), 0.2)
        else:
            for _ in range(3):
                assert await stream.ask(asking(1), 10) is None
            assert servicer.streams == 1, "it is not tried at every lookup"
    finally:
        await channels.close()
        await door.stop(0)


async def test_routers_ask_by_it_and_by_calls_where_it_ends(mesh):
    """From door to door: hits come by the stream; when it ends in the middle nobody notices."""
    (core,) = await mesh.start(cache_near_bytes=0)
    (cache,) = mesh.caches
    mesh.stage.free.set()
    await answer(core, ask())
    await asyncio.gather(*core._cache._stores)
    for _ in range(3):
        assert (await answer(core, ask()))[0].cache == HIT
    assert len(cache.servicer._streams) == 1
    stop = False

    async def ends():
        while not stop:
            cache.servicer.end_streams()
            await asyncio.sleep(0.005)

    faults = REGISTRY.get_sample_value("stagemesh_cache_faults_total", {"reason": "UNAVAILABLE"})
    ending = asyncio.create_task(ends())
    found = [(await answer(core, ask()))[0].cache for _ in range(25)]
    stop = True
    await ending
    assert found == [HIT] * 25
    assert REGISTRY.get_sample_value("stagemesh_cache_faults_total", {"reason": "UNAVAILABLE"}) == faults
