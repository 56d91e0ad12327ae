"""Redis or Valkey behind the memory, shared by several caches.

An entry is a hash with the record, its tags and its tenant, and ends by itself with its time. Sorted sets, one for each
tag and tenant, say which entries there are for what; they have no time of their own, so a server that evicts only keys
with one (`volatile-*`) never loses them. Writes wait in a bounded queue. While an invalidation could not be carried out
here, nothing from here is believed.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from stagemesh.errors import Unavailable
from stagemesh.invalidation import Selector

from .behind import BehindStats
from .entry_file import Row
from .redis_records import ROOT, believed, check_eviction, entry_name, index_name, to_record

log = logging.getLogger(__name__)
CONNECT_S = 5.0
WRITE_S = 5.0
PAUSE_S = 1.0
BATCH = 200
_TAGS, _DONE = ROOT + "tags", ROOT + "invalidations"
_FAILURES = (RedisError, OSError, TimeoutError)


class RedisStore:
    """One connection pool; used on one event loop."""

    name = "redis"
    answers = True

    def __init__(self, client: Any, *, timeout_s: float, max_waiting_bytes: int, done: set[str]) -> None:
        self.stats = BehindStats()
        self._client = client
        self._timeout_s = timeout_s
        self._max_waiting_bytes = max_waiting_bytes
        self._done = done
        self._waiting: dict[tuple[str, bytes], Row] = {}
        self._waiting_bytes = 0
        self._owed: list[Callable[[], Awaitable[None]]] = []
        self._paused_until = 0.0
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._task = asyncio.create_task(self._run(), name="cache-redis")

    def __repr__(self) -> str:
        return f"RedisStore({len(self._waiting)} waiting, {len(self._owed)} owed, {self.stats})"

    @classmethod
    async def connect(cls, url: str, *, timeout_s: float, max_waiting_bytes: int) -> "RedisStore":
        """Raises `Unavailable` when it does not answer, `ConfigError` when it may lose what it must not lose."""
        client: Any = redis.asyncio.from_url(url, socket_timeout=WRITE_S, socket_connect_timeout=CONNECT_S)
        try:
            async with asyncio.timeout(CONNECT_S):
                done = {each.decode() for each in await client.hkeys(_DONE)}
                await check_eviction(client)
        except _FAILURES as error:
            await client.aclose()
            raise Unavailable(f"redis: does not answer: {type(error).__name__}", field="redis") from None
        return cls(client, timeout_s=timeout_s, max_waiting_bytes=max_waiting_bytes, done=done)

    def kept(self, row: Row) -> None:
        """Write the entry soon; dropped, and counted, when too much waits."""
        self._forget(row.tenant, row.key)
        if self._waiting_bytes + len(row.value) > self._max_waiting_bytes:
            self.stats.writes_dropped += 1
            return
        self._waiting[row.tenant, row.key] = row
        self._waiting_bytes += len(row.value)
        self.stats.writes_waiting = len(self._waiting)
        self._wake.set()

    def gone(self, tenant: str, key: bytes) -> None:
        """Nothing: it left the memory for room or time, and stays here for the other caches until its time."""

    async def find(self, tenant: str, key: bytes) -> Row | None:
        """What another cache, or this one before, has stored. Never raises."""
        if self._owed or time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._client.hget(entry_name(tenant, key), "record")
        except _FAILURES as error:
            self._pause(error)
            return None
        if data is None or self._owed:
            return None
        row = believed(data, tenant, key)
        if row is None:
            log.warning("cache.redis_wrong: a record is not what was written")
        return row

    async def invalidate(self, selector: Selector, invalidation: str) -> None:
        """Drop what fits; when that fails, now and then again, and nothing from here is believed until it is done."""
        self._done.add(invalidation)
        for row in [row for row in self._waiting.values() if selector.fits(row.tenant, row.tags)]:
            self._forget(row.tenant, row.key)

        async def carry_out() -> None:
            await self._delete(await self._indexes(selector), selector.fits)
            await self._client.hset(_DONE, invalidation, int(time.time()))

        await self._owe(carry_out)

    async def drop_stale(self, model_tag: str, revision_tag: str) -> None:
        """See `Behind`."""

        def stale(tenant: str, tags: Iterable[str]) -> bool:
            return model_tag in tags and revision_tag not in tags

        for row in [row for row in self._waiting.values() if stale(row.tenant, row.tags)]:
            self._forget(row.tenant, row.key)
        await self._owe(lambda: self._delete([index_name("tag", model_tag)], stale))

    def carried_out(self, invalidation: str) -> bool:
        """Whether any of the caches did."""
        return invalidation in self._done

    def forget(self, invalidation: str) -> None:
        """It will not be heard of again."""
        self._done.discard(invalidation)
        self._owed.append(lambda: self._client.hdel(_DONE, invalidation))
        self._wake.set()

    async def close(self) -> None:
        """Write what waits, and let go."""
        try:
            async with asyncio.timeout(WRITE_S):
                while self._waiting and time.monotonic() >= self._paused_until:
                    await self._flush()
        except _FAILURES as error:
            log.warning("cache.redis_failed: %s at the end", type(error).__name__)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    def _forget(self, tenant: str, key: bytes) -> None:
        before = self._waiting.pop((tenant, key), None)
        if before is not None:
            self._waiting_bytes -= len(before.value)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            try:
                await self._pay()
                while self._waiting:
                    await self._flush()
            except _FAILURES as error:
                self._pause(error)
                self._wake.set()

    async def _flush(self) -> None:
        async with self._one_at_a_time:
            rows = [row for row, _ in zip(self._waiting.values(), range(BATCH), strict=False)]
            for row in rows:
                self._forget(row.tenant, row.key)
            self.stats.writes_waiting = len(self._waiting)
            try:
                async with asyncio.timeout(WRITE_S):
                    await self._write(rows)
            except BaseException:
                self.stats.writes_dropped += len(rows)
                raise

    async def _write(self, rows: list[Row]) -> None:
        now_ms = time.time_ns() // 10**6
        pipe = self._client.pipeline(transaction=True)
        touched = set()
        for row in rows:
            name = entry_name(row.tenant, row.key)
            fields = {"record": to_record(row), "tags": json.dumps(row.tags), "tenant": row.tenant}
            pipe.hset(name, mapping=fields)
            pipe.pexpireat(name, row.expires_ms)
            for index in (
                index_name("all", ""),
                index_name("tenant", row.tenant),
                *(index_name("tag", t) for t in row.tags),
            ):
                pipe.zadd(index, {name: row.expires_ms})
                touched.add(index)
            if row.tags:
                pipe.sadd(_TAGS, *row.tags)
        for index in touched:
            pipe.zremrangebyscore(index, "-inf", now_ms)
        await pipe.execute()

    async def _indexes(self, selector: Selector) -> list[str]:
        """Sets whose members together are all that the selector can fit."""
        if selector.tags:
            return [index_name("tag", min(selector.tags))]
        if selector.prefix:
            tags = [each.decode() for each in await self._client.smembers(_TAGS)]
            return [index_name("tag", tag) for tag in tags if tag.startswith(selector.prefix)]
        return [index_name("tenant", selector.tenant) if selector.tenant else index_name("all", "")]

    async def _delete(self, indexes: list[str], fits: Callable[[str, list[str]], bool]) -> None:
        async with self._one_at_a_time:
            for index in indexes:
                names = [name async for name, _ in self._client.zscan_iter(index, count=1000)]
                for start in range(0, len(names), BATCH):
                    await self._delete_some(index, names[start : start + BATCH], fits)

    async def _delete_some(
        self, index: str, names: list[bytes], fits: Callable[[str, list[str]], bool]
    ) -> None:
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.hmget(name, "tenant", "tags")
        chosen = []
        for name, (tenant, tags) in zip(names, await pipe.execute(), strict=True):
            if tags is None or fits(tenant.decode(), json.loads(tags)):
                chosen.append(name)
        if chosen:
            await self._client.unlink(*chosen)
            await self._client.zrem(index, *chosen)

    async def _owe(self, what: Callable[[], Awaitable[None]]) -> None:
        self._owed.append(what)
        try:
            await self._pay()
        except _FAILURES as error:
            self._pause(error)
            self._wake.set()

    async def _pay(self) -> None:
        while self._owed:
            what = self._owed[0]
            async with asyncio.timeout(WRITE_S):
                await what()
            # Two may have paid at once: what was done twice was done.
            if self._owed and self._owed[0] is what:
                self._owed.pop(0)

    def _pause(self, error: BaseException) -> None:
        log.warning("cache.redis_failed: %s, left alone for %.0f s", type(error).__name__, PAUSE_S)
        self._paused_until = time.monotonic() + PAUSE_S
