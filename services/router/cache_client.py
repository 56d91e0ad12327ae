"""Asks the cache, and goes on without it when it is dead, slow or wrong."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from typing import TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import Span

from stagemesh.v1 import cache_pb2, inference_pb2, registry_pb2

from .cache_key import cache_tags
from .channels import Channels
from .membership import Membership
from .telemetry import Telemetry

log = logging.getLogger(__name__)
PAUSE_S = 1.0
"""How long a cache that failed is left alone."""
MAX_VALUE_BYTES = 8 * 2**20
MAX_LOOKUPS = 32
"""Lookups under way at once. More wait for their turn before their time runs: a burst of requests would queue up at
the cache and time out there, though it is as fast as ever."""
MAX_STORES = 64
"""Stores under way at once; beyond that answers are not stored."""
STORE_TIMEOUT_S = 2.0

HIT = inference_pb2.CACHE_STATUS_HIT
MISS = inference_pb2.CACHE_STATUS_MISS
BYPASS = inference_pb2.CACHE_STATUS_BYPASS
ERROR = inference_pb2.CACHE_STATUS_ERROR
STATUS_NAMES: dict[int, str] = {HIT: "hit", MISS: "miss", BYPASS: "bypass", ERROR: "error"}

M = TypeVar("M", bound=Message)


class CacheClient:
    """Lookups answer in `timeout_ms` or count as errors; stores happen in the background."""

    def __init__(
        self, membership: Membership, channels: Channels, telemetry: Telemetry, *, timeout_ms: int
    ) -> None:
        self._membership = membership
        self._channels = channels
        self._telemetry = telemetry
        self._timeout_s = timeout_ms / 1000
        self._paused: dict[str, float] = {}
        self._stores: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_LOOKUPS)

    async def lookup(
        self, tenant: str, key: bytes, kind: type[M], parent: Span | None = None
    ) -> tuple[int, M | None]:
        """HIT with the value, MISS, or ERROR; BYPASS when there is no cache. Never raises for the cache's sake."""
        address = self._address(key)
        status: int = BYPASS
        value: M | None = None
        if address and self._paused.get(address, 0.0) > time.monotonic():
            status = ERROR
        elif address:
            with self._telemetry.span("cache.lookup", parent) as span:
                async with self._room:
                    # Those that waited for room need not try what failed meanwhile.
                    status = ERROR
                    if self._paused.get(address, 0.0) <= time.monotonic():
                        status, value = await self._ask(address, tenant, key, kind)
                span.set_attribute("stagemesh.cache", STATUS_NAMES[status])
        self._telemetry.cache_lookups.labels(STATUS_NAMES[status]).inc()
        return status, value

    def store(self, tenant: str, key: bytes, value: Message, spec: registry_pb2.ModelSpec) -> None:
        """Store in the background; dropped when the value is large, or the cache is busy or paused."""
        address = self._address(key)
        data = value.SerializeToString(deterministic=True)
        if (
            not address
            or len(data) > MAX_VALUE_BYTES
            or len(self._stores) >= MAX_STORES
            or self._paused.get(address, 0.0) > time.monotonic()
        ):
            return
        request = cache_pb2.CacheStoreRequest(
            tenant=tenant,
            key=key,
            value=data,
            digest=hashlib.sha256(data).digest(),
            ttl_s=spec.cache_ttl_s,
            tags=cache_tags(spec),
        )
        task = asyncio.create_task(self._store(address, request))
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)

    async def close(self) -> None:
        """Let the stores under way end; each has a deadline."""
        await asyncio.gather(*self._stores, return_exceptions=True)

    async def _ask(self, address: str, tenant: str, key: bytes, kind: type[M]) -> tuple[int, M | None]:
        request = cache_pb2.CacheLookupRequest(tenant=tenant, key=key)
        try:
            answer = await self._channels.cache(address).Lookup(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            self._pause(address, error.code().name)
            return ERROR, None
        if not answer.hit:
            return MISS, None
        if hashlib.sha256(answer.value).digest() != answer.digest:
            self._pause(address, "wrong digest")
            return ERROR, None
        try:
            return HIT, kind.FromString(answer.value)
        except DecodeError:
            self._pause(address, "not a value of that kind")
            return ERROR, None

    async def _store(self, address: str, request: cache_pb2.CacheStoreRequest) -> None:
        try:
            await self._channels.cache(address).Store(request, timeout=STORE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._pause(address, error.code().name)

    def _pause(self, address: str, why: str) -> None:
        log.warning("cache.failed: %s at %s, left alone for %.0f s", why, address, PAUSE_S)
        self._paused[address] = time.monotonic() + PAUSE_S

    def _address(self, key: bytes) -> str:
        return choose_cache([record.address for record in self._membership.services_of("cache")], key)


def choose_cache(addresses: Sequence[str], key: bytes) -> str:
    """The cache that keeps `key` (rendezvous hashing, so that few keys move when caches come and go), or empty."""
    return max(addresses, key=lambda each: hashlib.sha256(each.encode() + key).digest(), default="")
