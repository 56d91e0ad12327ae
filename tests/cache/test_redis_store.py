"""A shared store behind several caches, on a real redis-server."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stagemesh.errors import ConfigError, Unavailable

from .redis_process import BINARY, RedisProcess

pytest.importorskip("redis")
if BINARY is None:
    pytest.skip("no redis-server: scripts/install_redis.sh installs it", allow_module_level=True)

from stagemesh.services.cache import redis_records, redis_store
from stagemesh.services.cache.entry_file import Row
from stagemesh.services.cache.redis_store import RedisStore

from stagemesh.invalidation import Selector

from .test_cache_crash import Caches, caches, has, hasnt, pb, put, until
from .test_entry_file import row

__all__ = ["caches"]


def fresh(
    name: str, value: bytes = b"answer", tenant: str = "t", ttl_s: float = 60, tags: tuple[str, ...] = ("m",)
) -> Row:
    now_ms = time.time_ns() // 10**6
    return row(name, value, tenant, tags=tags, stored_ms=now_ms, expires_ms=now_ms + int(ttl_s * 1000))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    process = RedisProcess(tmp_path)
    await process.start()
    yield process
    await process.stop()


async def connect(server: RedisProcess, max_waiting_bytes: int = 10**6) -> RedisStore:
    return await RedisStore.connect(server.url, timeout_s=5.0, max_waiting_bytes=max_waiting_bytes)


async def written(store: RedisStore) -> None:
    async with asyncio.timeout(20):
        while store._waiting or store._owed or store._one_at_a_time.locked():
            await asyncio.sleep(0.005)


async def test_what_one_stores_another_finds(server: RedisProcess) -> None:
    one, two = await connect(server), await connect(server)
    each, other = fresh("a"), fresh("a", tenant="u", value=b"theirs")
    one.kept(each)
    one.kept(other)
    await written(one)
    assert await two.find("t", each.key) == each
    assert await two.find("u", each.key) == other
    assert await two.find("v", each.key) is None
    one.gone("t", each.key)  # it left the memory of one of them, no more
    assert await two.find("t", each.key) == each
    newer = fresh("a", b"newer")
    two.kept(newer)
    await two.close()
    assert await one.find("t", each.key) == newer
    await one.close()


async def test_an_entry_ends_with_its_time_and_its_index_with_it(server: RedisProcess) -> None:
    store = await connect(server)
    each = fresh("a", ttl_s=0.2)
    store.kept(each)
    await written(store)
    await until(lambda: _missing(store, each))
    store.kept(fresh("b"))
    await written(store)
    assert await store._client.zcard(redis_records.index_name("tag", "m")) == 1
    await store.close()


async def _missing(store: RedisStore, each: Row) -> bool:
    return await store.find(each.tenant, each.key) is None


@pytest.mark.parametrize(
    ("selector", "gone"),
    [
        (Selector(), "abcd"),
        (Selector(tenant="t"), "abc"),
        (Selector(tags=frozenset({"model:x"})), "abd"),
        (Selector(tags=frozenset({"model:x", "namespace:n/1"})), "a"),
        (Selector(tenant="t", tags=frozenset({"model:x"})), "ab"),
        (Selector(prefix="namespace:n/"), "ac"),
        (Selector(tags=frozenset({"none"})), ""),
        (Selector(prefix="none"), ""),
    ],
    ids=["all", "tenant", "tag", "tags", "tenant-and-tag", "prefix", "no-such-tag", "no-such-prefix"],
)
async def test_an_invalidation_drops_what_it_fits(
    server: RedisProcess, selector: Selector, gone: str
) -> None:
    store, other = await connect(server), await connect(server)
    rows = {
        "a": fresh("a", tags=("model:x", "namespace:n/1")),
        "b": fresh("b", tags=("model:x",)),
        "c": fresh("c", tags=("model:y", "namespace:n/2")),
        "d": fresh("d", tags=("model:x",), tenant="u"),
    }
    for name in "abcd":
        store.kept(rows[name])
        if name != "d":  # the last one may still wait to be written
            await written(store)
    assert not store.carried_out("id")
    await store.invalidate(selector, "id")
    await written(store)
    found = "".join([n for n, each in rows.items() if await other.find(each.tenant, each.key) is None])
    assert found == gone
    again = await connect(server)
    assert again.carried_out("id")
    again.forget("id")
    await written(again)
    assert not (await connect(server)).carried_out("id")


async def test_a_redeployed_model_leaves_nothing_of_before(server: RedisProcess) -> None:
    store = await connect(server)
    rows = [fresh("old", tags=("model:x", "revision:1")), fresh("new", tags=("model:x", "revision:2"))]
    for each in rows:
        store.kept(each)
    await written(store)
    await store.drop_stale("model:x", "revision:2")
    assert await store.find("t", rows[0].key) is None
    assert await store.find("t", rows[1].key) == rows[1]
    await store.drop_stale("model:x", "")
    assert await store.find("t", rows[1].key) is None
    await store.close()


async def test_a_wrong_record_is_not_believed(server: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    store = await connect(server)
    each, other = fresh("a"), fresh("b")
    name = redis_records.entry_name("t", each.key)
    right = redis_records.to_record(each)
    wrong = (
        b"",
        b"\xff\xff",
        right[:-20],
        redis_records.to_record(other),
        redis_records.to_record(fresh("a", tenant="u")),
    )
    for record in wrong:
        await store._client.hset(name, "record", record)
        caplog.clear()
        assert await store.find("t", each.key) is None
        assert "redis_wrong" in caplog.text
    await store._client.hset(name, "record", right)
    assert await store.find("t", each.key) == each
    await store.close()


async def test_a_frozen_server_is_passed_by_and_an_invalidation_is_owed(
    server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await RedisStore.connect(server.url, timeout_s=0.2, max_waiting_bytes=2000)
    each = fresh("a", tags=("m",))
    store.kept(each)
    await written(store)
    server.freeze()
    try:
        asked_at = time.monotonic()
        assert await store.find("t", each.key) is None
        assert store._paused_until > asked_at, "it is left alone"
        for number in range(5):
            store.kept(fresh(str(number), b"v" * 900))
        assert store.stats.writes_dropped >= 2
        monkeypatch.setattr(redis_store, "WRITE_S", 0.2)
        await store.invalidate(Selector(tags=frozenset({"m"})), "id")
        assert store._owed
        monkeypatch.undo()
        store._paused_until = 0.0
        assert await store.find("t", each.key) is None
    finally:
        server.thaw()
    async with asyncio.timeout(30):
        while store._owed:
            assert await store.find("t", each.key) is None
            await asyncio.sleep(0.02)
    other = await connect(server)
    assert await other.find("t", each.key) is None
    await other.close()
    await store.close()


async def test_nothing_is_believed_while_an_invalidation_is_owed(server: RedisProcess) -> None:
    store = await connect(server)
    each, turns = fresh("a"), 0

    async def fails_at_first() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise OSError

    store.kept(each)
    await written(store)
    await store._owe(fails_at_first)
    store._paused_until = 0.0
    assert await store.find("t", each.key) is None
    await written(store)
    assert turns == 2
    store._paused_until = 0.0
    assert await store.find("t", each.key) == each
    await store.close()


async def test_a_server_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    process = RedisProcess(tmp_path, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(Unavailable, match="redis: does not answer"):
        await connect(process)
    await process.start()
    try:
        with pytest.raises(ConfigError, match="allkeys-lru"):
            await connect(process)
    finally:
        await process.stop()


async def test_two_caches_share_what_they_store_and_forget_it_together(
    caches: Caches, server: RedisProcess
) -> None:
    redis_flags = ("--redis", server.url, "--redis-timeout-ms", "1000")
    one, two = await caches.start("one", *redis_flags), await caches.start("two", *redis_flags)
    await put(one, "q", b"v" * 4096, tags=["model:m"])
    await put(one, "stays", tags=["model:n"])
    await until(lambda: has(two, "q"))
    assert (await two.GetStats(pb.CacheStatsRequest(), timeout=20)).restored == 1
    await two.Invalidate(pb.CacheInvalidateRequest(tag="model:m"), timeout=20)
    await until(lambda: hasnt(one, "q"))
    assert not await has(two, "q")
    await caches.kill("one")
    one = await caches.start("one", *redis_flags)
    assert not await has(one, "q")
    assert await has(one, "stays")
    await server.stop()
    assert not await has(one, "q")
    await put(one, "without", b"x")
    assert await has(one, "without")
