"""Answers on their way to the caches, in the background: what waits for a cache while a call is under way goes with the next."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc.aio

from stagemesh.v1 import cache_pb2

from ..channels import Channels
from .flight import HeldLeases, Lease

log = logging.getLogger(__name__)
MAX_BATCH = 64
MAX_BATCH_BYTES = 4 * 2**20
MAX_WAITING = 4096
MAX_WAITING_BYTES = 64 * 2**20
"""What waits for one cache; beyond that answers are not stored."""
STORE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry, when its computation began, in monotonic seconds, and the lease for that."""

    entry: cache_pb2.CacheStoreRequest
    begun_at: float
    lease: Lease | None


class Stores:
    """One call at a time to each cache. `dropped(reason)` is told of each answer that is not stored, `failed(address,
    why)` of caches that fail, `replaced(tenant, key)` of entries that others took the place of.

    Iterating gives the tasks under way, to wait for.
    """

    def __init__(
        self,
        channels: Channels,
        leases: HeldLeases,
        *,
        dropped: Callable[[str], None],
        failed: Callable[[str, str], None],
        replaced: Callable[[str, bytes], None],
    ) -> None:
        self._channels = channels
        self._leases = leases
        self._dropped = dropped
        self._failed = failed
        self._replaced = replaced
        self._waiting: dict[str, deque[Waiting]] = {}
        self._bytes: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._singly: set[str] = set()

    def __repr__(self) -> str:
        return f"Stores({sum(map(len, self._waiting.values()))} waiting, {len(self._tasks)} calls)"

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(list(self._tasks.values()))

    def add(
        self, address: str, entry: cache_pb2.CacheStoreRequest, begun_at: float, lease: Lease | None
    ) -> bool:
        """Send it soon; False when too much waits for this cache already."""
        waiting = self._waiting.setdefault(address, deque())
        size = self._bytes.get(address, 0) + len(entry.value)
        if waiting and (len(waiting) >= MAX_WAITING or size > MAX_WAITING_BYTES):
            return False
        waiting.append(Waiting(entry, begun_at, lease))
        self._bytes[address] = size
        if address not in self._tasks:
            self._tasks[address] = asyncio.create_task(self._run(address), name="cache-stores")
        return True

    async def close(self) -> None:
        """Let what waits be sent; each call has a deadline."""
        await asyncio.gather(*self, return_exceptions=True)

    async def _run(self, address: str) -> None:
        waiting = self._waiting[address]
        try:
            while waiting:
                await self._send(address, self._some(address, waiting))
        finally:
            del self._waiting[address], self._tasks[address]
            self._bytes.pop(address, None)

    def _some(self, address: str, waiting: deque[Waiting]) -> list[Waiting]:
        some: list[Waiting] = []
        nbytes = 0
        at_most = 1 if address in self._singly else MAX_BATCH
        while waiting and len(some) < at_most:
            nbytes += len(waiting[0].entry.value)
            if some and nbytes > MAX_BATCH_BYTES:
                break
            some.append(waiting.popleft())
        self._bytes[address] -= sum(len(each.entry.value) for each in some)
        return some

    async def _send(self, address: str, some: list[Waiting]) -> None:
        now = time.monotonic()
        for each in some:
            each.entry.begun_ms_ago = int((now - each.begun_at) * 1000) + 1
        try:
            for answer in await self._call(address, [each.entry for each in some]):
                if not answer.stored:
                    self._dropped("refused")
                    log.debug("cache.refused: %s", answer.reason)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and len(some) > 1:
                # A cache of an earlier version, which takes them one by one.
                self._singly.add(address)
                self._waiting[address].extendleft(reversed(some))
                self._bytes[address] += sum(len(each.entry.value) for each in some)
                return
            self._failed(address, error.code().name)
            rest = self._waiting[address]
            some = [*some, *rest]
            rest.clear()
            self._bytes[address] = 0
            for _ in some:
                self._dropped("failed")
        for each in some:
            self._leases.drop(each.lease)
            self._replaced(each.entry.tenant, each.entry.key)

    async def _call(
        self, address: str, entries: list[cache_pb2.CacheStoreRequest]
    ) -> list[cache_pb2.CacheStoreResponse]:
        stub = self._channels.cache(address)
        if len(entries) == 1:
            return [await stub.Store(entries[0], timeout=STORE_TIMEOUT_S)]
        request = cache_pb2.CacheStoreManyRequest(entries=entries)
        answer = await stub.StoreMany(request, timeout=STORE_TIMEOUT_S)
        return list(answer.results)
