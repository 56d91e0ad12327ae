"""Answers on their way to a cache that is slow, old or gone."""

import asyncio

import grpc
import pytest
from stagemesh.services.router.cache import stores as module
from stagemesh.services.router.cache.flight import Lease
from stagemesh.services.router.cache.stores import Stores

from stagemesh.v1.cache_pb2 import CacheStoreManyResponse, CacheStoreRequest, CacheStoreResponse


class Cache:
    """Takes what it is sent, when it is `free`; `fault` is what every call ends with instead."""

    def __init__(self, fault=None, old=False):
        self.fault, self.old = fault, old
        self.free = asyncio.Event()
        self.calls = []

    async def Store(self, request, timeout):
        await self._called([request])
        return CacheStoreResponse(stored=True)

    async def StoreMany(self, request, timeout):
        if self.old:
            raise failure(grpc.StatusCode.UNIMPLEMENTED)
        await self._called(list(request.entries))
        return CacheStoreManyResponse(results=[CacheStoreResponse(stored=True) for _ in request.entries])

    async def _called(self, entries):
        self.calls.append(entries)
        await self.free.wait()
        if self.fault:
            raise failure(self.fault)


def failure(code):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


class Leases:
    def __init__(self):
        self.dropped = []

    def drop(self, lease):
        self.dropped.append(lease)


class Fixture:
    def __init__(self, cache):
        self.caches = {"a:1": cache, "b:1": Cache()}
        self.dropped, self.failed, self.replaced = [], [], []
        self.leases = Leases()
        self.stores = Stores(
            self,
            self.leases,
            dropped=self.dropped.append,
            failed=lambda address, why: self.failed.append((address, why)),
            replaced=lambda tenant, key: self.replaced.append(key),
        )

    def cache(self, address):
        return self.caches[address]

    def add(self, number, address="a:1", size=10):
        entry = CacheStoreRequest(tenant="t", key=b"%d" % number, value=bytes(size))
        lease = Lease(b"%d" % number, address, 3.0)
        return self.stores.add(address, entry, asyncio.get_running_loop().time() - 5, lease)


async def test_what_waits_goes_together_in_its_order_and_caches_do_not_wait_for_each_other():
    cache = Cache()
    found = Fixture(cache)
    for number in range(150):
        assert found.add(number)
    found.add(999, "b:1")
    found.caches["b:1"].free.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert found.replaced == [b"999"]
    cache.free.set()
    await found.stores.close()
    assert [len(call) for call in cache.calls] == [64, 64, 22]
    assert [each.key for call in cache.calls for each in call] == [b"%d" % n for n in range(150)]
    assert len(found.leases.dropped) == 151
    assert "0 waiting, 0 calls" in repr(found.stores)


async def test_an_answer_that_waited_is_not_taken_for_younger_than_it_is(monkeypatch):
    cache = Cache()
    found = Fixture(cache)
    found.add(1)
    await asyncio.sleep(0)
    found.add(2)
    later = module.time.monotonic() + 30
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    cache.free.set()
    await found.stores.close()
    first, second = (call[0].begun_ms_ago for call in cache.calls)
    assert 5_000 <= first < 10_000
    assert 35_000 <= second < 40_000


async def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    cache = Cache()
    found = Fixture(cache)
    assert [found.add(number) for number in range(5)] == [True, True, True, False, False]
    await asyncio.sleep(0)  # three are under way now
    assert found.add(6, size=900)
    assert not found.add(7, size=200)
    cache.free.set()
    await found.stores.close()
    assert [len(call) for call in cache.calls] == [3, 1]


async def test_a_large_one_goes_alone(monkeypatch):
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 1000)
    cache = Cache()
    cache.free.set()
    found = Fixture(cache)
    for number, size in enumerate((5000, 400, 400, 400)):
        found.add(number, size=size)
    await found.stores.close()
    assert [len(call) for call in cache.calls] == [1, 2, 1]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_what_a_cache_that_fails_was_to_keep_is_counted_and_its_leases_end(code):
    cache = Cache(fault=code)
    found = Fixture(cache)
    found.add(1)
    await asyncio.sleep(0)
    found.add(2)
    found.add(3)
    cache.free.set()
    await found.stores.close()
    assert len(cache.calls) == 1, "it is not asked again and again"
    assert found.dropped == ["failed"] * 3
    assert found.failed == [("a:1", code.name)]
    assert len(found.leases.dropped) == 3


async def test_a_cache_of_an_earlier_version_takes_them_one_by_one():
    cache = Cache(old=True)
    cache.free.set()
    found = Fixture(cache)
    for number in range(3):
        found.add(number)
    await found.stores.close()
    assert [[each.key for each in call] for call in cache.calls] == [[b"0"], [b"1"], [b"2"]]
    assert not found.dropped
    assert not found.failed
