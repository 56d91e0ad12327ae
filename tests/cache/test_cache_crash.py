"""Real caches that are killed, restarted, told to forget, and lost: what they answer afterwards."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from stagemesh.services.cache.__main__ import main as cache_main
from stagemesh.services.cache.behind import Nothing
from stagemesh.services.cache.validity import Validity, ValidityWatch

from stagemesh import records
from stagemesh.entry_store import EntryStore
from stagemesh.etcd import Etcd
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2 as pb
from stagemesh.v1.cache_pb2_grpc import CacheServiceStub
from stagemesh.v1.registry_pb2 import ModelSpec, ServiceRecord
from tests.library.etcd_process import EtcdProcess

from .test_process import lookup_request, start_cache, store_request

log = logging.getLogger(__name__)


class Caches:
    """Any number of caches on one etcd, by a name of the test's own; killed at the end."""

    def __init__(self, etcd_process: EtcdProcess, etcd: Etcd, stack: AsyncExitStack) -> None:
        self.etcd_process = etcd_process
        self.etcd = etcd
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.stubs: dict[str, CacheServiceStub] = {}
        self.addresses: dict[str, str] = {}
        self._stack = stack

    async def start(self, name: str, *flags: str) -> CacheServiceStub:
        """Start it; returns when it says that it is ready."""
        etcd = ("--etcd", self.etcd_process.address)
        process = self.processes[name] = await start_cache(*etcd, "--port", "0", *flags)
        async with asyncio.timeout(60):
            while not (found := [each for each in await self.records() if each.pid == process.pid]):
                assert process.returncode is None, (await process.communicate())[1].decode()[-500:]
                await asyncio.sleep(0.02)
        self.addresses[name] = found[0].address
        channel = await self._stack.enter_async_context(create_channel(found[0].address))
        self.stubs[name] = CacheServiceStub(channel)
        return self.stubs[name]

    async def records(self) -> list[ServiceRecord]:
        items, _ = await self.etcd.get_prefix(records.SERVICES + "cache/")
        return [records.from_json(item.value, ServiceRecord) for item in items]

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        await process.communicate()

    async def close(self) -> None:
        for name in list(self.processes):
            await self.kill(name)


@pytest.fixture
async def caches(tmp_path: Path) -> AsyncIterator[Caches]:
    async with AsyncExitStack() as stack:
        process = EtcdProcess(tmp_path)
        await process.start()
        stack.push_async_callback(process.stop)
        etcd = Etcd(process.address)
        await etcd.start()
        stack.push_async_callback(etcd.close)
        found = Caches(process, etcd, stack)
        stack.push_async_callback(found.close)
        yield found


async def put(cache: CacheServiceStub, name: str, value: bytes = b"v", **kw: object) -> None:
    answer = await cache.Store(store_request("a", name, value, **kw), timeout=20, wait_for_ready=True)
    assert answer.stored, answer.reason


async def has(cache: CacheServiceStub, name: str) -> bool:
    found = await cache.Lookup(lookup_request("a", name), timeout=20, wait_for_ready=True)
    if found.hit:
        key = hashlib.sha256(name.encode()).digest()
        assert found.digest == hashlib.sha256(key + found.value).digest()
    return bool(found.hit)


async def until(check: Callable[[], object], within_s: float = 20.0) -> float:
    """Seconds until the check, awaited, holds."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await check():  # type: ignore[misc]
            await asyncio.sleep(0.01)
    return time.monotonic() - started


async def test_a_killed_cache_comes_back_with_whole_entries(caches: Caches, tmp_path: Path) -> None:
    """It is killed while it is being written to. What had time to reach the file is there, and nothing is torn."""
    file = ("--file", str(tmp_path / "entries"))
    cache = await caches.start("x", *file)
    await put(cache, "early", b"e" * 5000, tags=["model:m"])
    await put(cache, "dropped", tags=["model:other"])
    dropped = await cache.Invalidate(pb.CacheInvalidateRequest(tag="model:other"), timeout=20)
    assert (dropped.entries, dropped.announced) == (1, True)
    written = 0

    async def flood() -> None:
        nonlocal written
        while True:
            await put(cache, f"flood {written}", bytes([written % 256]) * (written * 37 % 20000))
            written += 1

    flooding = asyncio.create_task(flood())
    await until(lambda: asyncio.sleep(0.01, written > 200))
    await caches.kill("x")
    await asyncio.gather(flooding, return_exceptions=True)

    cache = await caches.start("x", *file)
    assert not list(tmp_path.glob("entries.corrupt*"))
    assert await has(cache, "early")
    assert not await has(cache, "dropped")
    back = [number for number in range(written) if await has(cache, f"flood {number}")]
    log.info("%d of %d came back", len(back), written)
    # In one order written, in transactions: what came back is a beginning, and all but the last of it.
    assert back == list(range(len(back)))
    assert len(back) > 100
    stats = await cache.GetStats(pb.CacheStatsRequest(), timeout=20)
    assert (stats.behind, stats.restored, stats.writes_dropped) == ("file", len(back) + 1, 0)


async def test_a_damaged_file_is_set_aside_and_the_cache_serves(caches: Caches, tmp_path: Path) -> None:
    path = tmp_path / "entries"
    path.write_bytes(b"this is not what it should be" * 500)
    cache = await caches.start("x", "--file", str(path))
    assert not await has(cache, "q")
    await put(cache, "q")
    assert await has(cache, "q")
    assert len(list(tmp_path.glob("entries.corrupt-*"))) == 1


async def test_an_invalidation_reaches_caches_that_are_up_and_one_that_was_down(
    caches: Caches, tmp_path: Path
) -> None:
    file = ("--file", str(tmp_path / "entries"))
    one, down = await caches.start("one"), await caches.start("down", *file)
    two = await caches.start("two")
    for cache in (one, two, down):
        await put(cache, "gone", tags=["model:m", "namespace:team/a"])
        await put(cache, "stays", tags=["model:m", "namespace:other"])
    await until(lambda: flushed(down))
    await caches.kill("down")
    asked = pb.CacheInvalidateRequest(tags=["model:m"], prefix="namespace:team/")
    answer = await one.Invalidate(asked, timeout=20)
    assert (answer.entries, answer.announced) == (1, True)
    seconds = await until(lambda: hasnt(two, "gone"))
    log.info("the other cache heard of it after %.3f s", seconds)
    # What is asked for by the same name again, through another cache, drops nothing that is newer.
    await put(two, "gone", tags=["model:m", "namespace:team/a"])
    asked.id = answer.id
    assert (await two.Invalidate(asked, timeout=20)).entries == 1
    assert await has(two, "gone")
    down = await caches.start("down", *file)
    assert not await has(down, "gone")
    for cache in (one, two, down):
        assert await has(cache, "stays")


async def test_a_redeployed_model_leaves_no_answer_of_before(caches: Caches) -> None:
    cache = await caches.start("x")
    spec = ModelSpec(name="m", revision="r1")
    await caches.etcd.put(records.model_key("m"), records.to_json(spec))
    await put(cache, "old", tags=["model:m", "revision:r1"])
    await put(cache, "other", tags=["model:n", "revision:r1"])
    spec.revision = "r2"
    await caches.etcd.put(records.model_key("m"), records.to_json(spec))
    await until(lambda: hasnt(cache, "old"))
    await put(cache, "new", tags=["model:m", "revision:r2"])
    await caches.etcd.delete(records.model_key("m"))
    await until(lambda: hasnt(cache, "new"))
    assert await has(cache, "other")


async def test_an_answer_begun_before_its_invalidation_is_not_stored(caches: Caches) -> None:
    cache = await caches.start("x")
    await cache.Invalidate(pb.CacheInvalidateRequest(tag="model:m"), timeout=20, wait_for_ready=True)
    late = store_request("a", "q", tags=["model:m"], begun_ms_ago=60_000)
    answer = await cache.Store(late, timeout=20)
    assert (answer.stored, answer.reason) == (False, "it was invalidated while it was computed")
    late.tags[:] = ["model:n"]
    assert (await cache.Store(late, timeout=20)).stored


async def test_without_etcd_only_the_asked_cache_forgets_and_it_says_so(caches: Caches) -> None:
    cache = await caches.start("x")
    await put(cache, "q", tags=["model:m"])
    await caches.etcd_process.stop()
    answer = await cache.Invalidate(pb.CacheInvalidateRequest(tag="model:m"), timeout=20)
    assert (answer.entries, answer.announced) == (1, False)
    assert not await has(cache, "q")


async def test_one_computes_and_another_takes_over(caches: Caches) -> None:
    cache = await caches.start("x", "--compute-ttl-s", "0.5")

    def ask(**kw: object) -> grpc.aio.UnaryUnaryCall:
        request = lookup_request("a", "q")
        request.want_lease = True
        for name, value in kw.items():
            setattr(request, name, value)
        return cache.Lookup(request, timeout=30, wait_for_ready=True)

    first = await ask()
    assert first.lease
    assert first.lease_ttl_ms == 500
    assert (await ask()).busy
    other = lookup_request("b", "q")
    other.want_lease = True
    # Nothing of one tenant's flight shows to another.
    assert (await cache.Lookup(other, timeout=20)).lease
    second = asyncio.create_task(_done(ask(wait_ms=30_000)))
    third = asyncio.create_task(_done(ask(wait_ms=30_000)))
    await until(lambda: waiting(cache, 2))
    # The first one is silent: whoever waits longest goes on.
    done, _ = await asyncio.wait({second, third}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
    taken = done.pop().result()
    assert taken.lease not in (b"", first.lease)
    left = third if second.done() else second
    lost = await cache.Leases(pb.CacheLeasesRequest(renew=[first.lease, taken.lease]), timeout=20)
    assert first.lease in lost.lost
    await put(cache, "q", b"answer", lease=taken.lease)
    got = await asyncio.wait_for(left, 20)
    assert got.hit or got.lease
    stats = await cache.GetStats(pb.CacheStatsRequest(), timeout=20)
    assert stats.taken_over >= 1
    assert stats.waiting == 0


async def _done(call: grpc.aio.UnaryUnaryCall) -> pb.CacheLookupResponse:
    return await call  # type: ignore[no-any-return]


async def waiting(cache: CacheServiceStub, count: int) -> bool:
    return bool((await cache.GetStats(pb.CacheStatsRequest(), timeout=20)).waiting == count)


async def flushed(cache: CacheServiceStub) -> bool:
    await asyncio.sleep(0.1)
    return not (await cache.GetStats(pb.CacheStatsRequest(), timeout=20)).writes_waiting


async def hasnt(cache: CacheServiceStub, name: str) -> bool:
    return not await has(cache, name)


async def test_nobody_is_answered_before_what_was_invalidated_is_gone(
    caches: Caches, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_out, listed = asyncio.Event(), ValidityWatch.listed

    async def late(watch: ValidityWatch) -> None:
        await listed(watch)
        await carried_out.wait()

    monkeypatch.setattr(ValidityWatch, "listed", late)
    serving = asyncio.create_task(cache_main(["--etcd", caches.etcd_process.address, "--port", "0"]))
    try:
        await asyncio.sleep(0.5)
        assert await caches.records() == []
        carried_out.set()
        await until(caches.records)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_all_that_is_announced_is_carried_out_before_a_watch_is_listed(
    caches: Caches,
) -> None:
    now = time.monotonic()
    store = EntryStore(max_bytes=10**6, max_entry_bytes=10**4, clock=lambda: now)
    store.store("a", b"k", b"v", b"d", ttl_s=9, tags=["model:m"])
    store.store("a", b"l", b"v", b"d", ttl_s=9, tags=["model:n"])
    for name, value in (("1", b'{"what": {"tags": ["model:m"]}}'), ("2", b'{"what": {"tags": ["none"]}}')):
        await caches.etcd.put(records.invalidation_key(name), value)
    async with ValidityWatch(caches.etcd, Validity(store, Nothing())) as watch:
        await watch.listed()
        assert (("a", b"k") in store, ("a", b"l") in store) == (False, True)
        # One that cannot be read may have meant anything.
        await caches.etcd.put(records.invalidation_key("3"), b"not JSON")
        await until(lambda: asyncio.sleep(0, len(store) == 0))
