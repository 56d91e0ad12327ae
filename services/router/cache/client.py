"""Asks the cache, and goes on without it when it is dead, slow or wrong."""

import asyncio
import logging
import time
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError, Message
from opentelemetry.trace import Span

from stagemesh import tracing
from stagemesh.metrics import counter, gauge, tallies
from stagemesh.v1 import cache_pb2, inference_pb2

from ..channels import Channels
from ..membership import Membership
from ..telemetry import Telemetry
from .choice import PAUSE_S, Pauses, rank_caches
from .flight import Asked, CacheUse, HeldLeases, Lease
from .key import cache_tags, value_digest
from .near import NearCache
from .patience import patiently
from .stores import Stores

log = logging.getLogger(__name__)
MAX_VALUE_BYTES = 8 * 2**20
MAX_LOOKUPS = 32
"""Lookups under way at once. More wait for their turn before their time runs: a burst of requests would queue up at
the cache and time out there, though it is as fast as ever."""
MAX_WAITS = 1024
"""Requests that wait for another one's answer at once; more compute for themselves."""
WAIT_MARGIN_S = 1.0
"""How much longer than asked for a cache may take to end a wait."""
LATE_S = 5.0
"""How late this router may be itself before a call ends, although the cache had its time."""

HIT = inference_pb2.CACHE_STATUS_HIT
MISS = inference_pb2.CACHE_STATUS_MISS
BYPASS = inference_pb2.CACHE_STATUS_BYPASS
ERROR = inference_pb2.CACHE_STATUS_ERROR
SEMANTIC = inference_pb2.CACHE_STATUS_SEMANTIC
STATUS_NAMES: dict[int, str] = {
    HIT: "hit",
    MISS: "miss",
    BYPASS: "bypass",
    ERROR: "error",
    SEMANTIC: "semantic",
}

M = TypeVar("M", bound=Message)
_BYPASSED: Asked[Any] = Asked(BYPASS)


class CacheClient:
    """Lookups answer in `timeout_ms` or count as errors; stores happen in the background.

    One who asks for what another is computing waits for that up to `wait_s`; 0 turns that off. What lies in `near` is
    given without asking.
    """

    def __init__(
        self,
        membership: Membership,
        channels: Channels,
        telemetry: Telemetry,
        *,
        timeout_ms: int,
        wait_s: float = 30.0,
        near: NearCache | None = None,
    ) -> None:
        self._membership = membership
        self._channels = channels
        self._telemetry = telemetry
        self._timeout_s = timeout_ms / 1000
        self._wait_s = wait_s
        self._pauses = Pauses()
        self.near = NearCache(0, time.monotonic) if near is None else near
        self._near_untold = 0
        self._room = asyncio.Semaphore(MAX_LOOKUPS)
        self._waiting = 0
        self._leases = HeldLeases(channels)
        self._known: tuple[int, list[str]] = (-1, [])
        self._flights = tallies(
            "stagemesh_cache_flights_total",
            "Requests by their part in computing once: computed, coalesced, taken_over, alone.",
            ("part",),
        )
        self._faults = tallies(
            "stagemesh_cache_faults_total", "Caches and answers not believed, by reason.", ("reason",)
        )
        self._dropped = tallies(
            "stagemesh_cache_unstored_total", "Answers that were not stored, by reason.", ("reason",)
        )
        self._near_hits = counter(
            "stagemesh_cache_near_hits_total", "Hits from the router's own copies; hits count these too."
        )
        gauge("stagemesh_cache_near_entries", "Copies of entries that the router holds.").set_function(
            lambda: len(self.near)
        )
        gauge("stagemesh_cache_near_bytes", "Bytes of these copies, overhead included.").set_function(
            lambda: self.near.bytes_used
        )
        self._stores = Stores(
            channels,
            self._leases,
            dropped=lambda reason: self._dropped.labels(reason).inc(),
            failed=self._fault,
            replaced=self.near.forget,
        )

    def __repr__(self) -> str:
        return f"CacheClient({self._waiting} waiting, {self._leases!r}, {self._pauses!r})"

    def copied(self, use: CacheUse[M]) -> M | None:
        """The router's own copy of the answer, where there is one that may be given; no lookup is counted without."""
        if use.key is None or not use.controls.lookup:
            return None
        copy = self.near.find(use.tenant, use.key, use.controls.max_age_s)
        if copy is None:
            return None
        self._near_hits.inc()
        self._near_untold += 1
        self._telemetry.cache_lookups.count("hit")
        return use.kind.FromString(copy.value)

    def has_copy(self, tenant: str, key: bytes | None, max_age_s: int | None) -> bool:
        """Whether `copied` would find one."""
        return key is not None and self.near.find(tenant, key, max_age_s) is not None

    def bypassed(self) -> Asked[Any]:
        """What the cache says of a request that is neither looked up nor stored: nothing, which is counted."""
        self._telemetry.cache_lookups.count("bypass")
        return _BYPASSED

    async def ask(self, use: CacheUse[M], parent: Span | None = None) -> Asked[M]:
        """HIT with the value, MISS, or ERROR; BYPASS when nobody was asked. Never raises for the cache's sake."""
        if use.key is None or not use.controls.lookup:
            self._telemetry.cache_lookups.count("bypass")
            return self._asked(use, BYPASS)
        copied = self.copied(use)
        if copied is not None:
            return Asked(HIT, copied)
        ranked = self._ranked(use.key)
        if not ranked:
            self._telemetry.cache_lookups.count("bypass")
            return self._asked(use, BYPASS)
        asked = Asked[M](ERROR)
        # A second cache is asked only when the first was lost while this request waited at it.
        for _ in range(2):
            address = self._pauses.first(ranked, time.monotonic())
            if not address:
                asked = self._asked(use, ERROR)
                break
            with self._telemetry.span("cache.lookup", parent) as span:
                asked, again = await self._ask(use, address, len(ranked) > 1)
                span.set_attribute("stagemesh.cache", STATUS_NAMES[asked.status])
            if not again:
                break
        self._telemetry.cache_lookups.count(STATUS_NAMES[asked.status])
        return asked

    async def close(self) -> None:
        """Let the stores under way end; each has a deadline."""
        await self._stores.close()
        await self._leases.close()

    async def _ask(self, use: CacheUse[M], address: str, others: bool) -> tuple[Asked[M], bool]:
        """What this cache says, and whether to ask another one."""
        request = cache_pb2.CacheLookupRequest(tenant=use.tenant, key=use.key)
        request.want_lease = use.controls.store and self._wait_s > 0
        if use.controls.max_age_s is not None:
            request.max_age_s = use.controls.max_age_s
        async with self._room:
            # Those that waited for room need not try what failed meanwhile.
            if self._pauses.paused(address, time.monotonic()):
                return self._asked(use, ERROR), False
            asked_at = time.monotonic()
            request.near_hits = min(self._near_untold, 2**32 - 1)
            self._near_untold -= request.near_hits
            answer = await self._call(address, request, self._timeout_s)
            if answer is None:
                self._near_untold += request.near_hits
            request.near_hits = 0
        if answer is None:
            return self._asked(use, ERROR), False
        if not answer.busy:
            return self._heard(use, address, answer, asked_at), False
        left = min(self._wait_s, use.deadline - time.monotonic() - WAIT_MARGIN_S)
        if left <= 0 or self._waiting >= MAX_WAITS:
            self._flights.labels("alone").inc()
            return self._asked(use, MISS), False
        request.wait_ms = int(left * 1000) + 1
        self._waiting += 1
        try:
            answer = await self._call(address, request, left + WAIT_MARGIN_S)
        finally:
            self._waiting -= 1
        if answer is None:
            return self._asked(use, ERROR), others
        return self._heard(use, address, answer, asked_at, waited=True), False

    def _heard(
        self,
        use: CacheUse[M],
        address: str,
        answer: cache_pb2.CacheLookupResponse,
        asked_at: float,
        *,
        waited: bool = False,
    ) -> Asked[M]:
        if answer.hit:
            value = self._believed(use, address, answer)
            if value is None or use.key is None:
                return self._asked(use, ERROR)
            self.near.keep(use.tenant, use.key, answer, asked_at)
            if waited:
                self._flights.labels("coalesced").inc()
            return Asked(HIT, value)
        if answer.lease:
            self._flights.labels("taken_over" if waited else "computed").inc()
            lease = Lease(answer.lease, address, max(answer.lease_ttl_ms, 100) / 1000)
            self._leases.hold(lease)
            return self._asked(use, MISS, lease)
        self._flights.labels("alone").inc()
        return self._asked(use, MISS)

    def _believed(self, use: CacheUse[M], address: str, answer: cache_pb2.CacheLookupResponse) -> M | None:
        fault = ""
        value: M | None = None
        if use.key is None or value_digest(use.key, answer.value) != answer.digest:
            fault = "wrong digest"
        else:
            try:
                value = use.kind.FromString(answer.value)
            except DecodeError:
                fault = "not a value of that kind"
            else:
                fault = use.fault(value)
        if not fault:
            return value
        self._fault(address, fault)
        return None

    async def _call(
        self, address: str, request: cache_pb2.CacheLookupRequest, timeout_s: float
    ) -> cache_pb2.CacheLookupResponse | None:
        until = time.monotonic() + timeout_s
        try:
            # A stream says nothing of the trace that a lookup belongs to, and is not for those that wait for others.
            if not (request.wait_ms or tracing.enabled()):
                found = await self._channels.lookups(address).ask(request, timeout_s)
                if found is not None:
                    return found
            left_s = max(until - time.monotonic(), 0.001)
            call = self._channels.cache(address).Lookup(request, timeout=left_s + LATE_S)
            answer: cache_pb2.CacheLookupResponse = await patiently(call, call.cancel, left_s)
        except TimeoutError:
            self._fault(address, "DEADLINE_EXCEEDED")
            return None
        except grpc.aio.AioRpcError as error:
            self._fault(address, error.code().name)
            return None
        return answer

    def _asked(self, use: CacheUse[M], status: int, lease: Lease | None = None) -> Asked[M]:
        if use.key is None or not use.controls.store:
            return Asked(status)

        def keep(value: M, lease: Lease | None, begun_at: float) -> None:
            self._store_soon(use, value, lease, begun_at)

        return Asked(status, lease=lease, keep=keep, give_back=self._leases.give_back)

    def _store_soon(self, use: CacheUse[M], value: M, lease: Lease | None, begun_at: float) -> None:
        """Store in the background; dropped when the value is large, or the cache is busy or paused."""
        assert use.key is not None
        tags = cache_tags(use.spec, use.controls.namespace, use.controls.tags)
        fault = use.fault(value)
        data = b"" if fault else value.SerializeToString(deterministic=True)
        if not fault and len(data) > MAX_VALUE_BYTES:
            fault = "too large"
        if not fault and self.near.invalidated(use.tenant, tags, begun_at):
            fault = "invalidated"
        address = lease.address if lease is not None else ""
        if not address or self._pauses.paused(address, time.monotonic()):
            address = self._pauses.first(self._ranked(use.key), time.monotonic())
        if not fault and not address:
            fault = "no cache"
        if not fault:
            entry = cache_pb2.CacheStoreRequest(
                tenant=use.tenant,
                key=use.key,
                value=data,
                digest=value_digest(use.key, data),
                ttl_s=use.controls.ttl_s or use.spec.cache_ttl_s,
                tags=tags,
                lease=lease.id if lease is not None else b"",
            )
            if self._stores.add(address, entry, begun_at, lease):
                return
            fault = "too many at once"
        self._dropped.labels(fault).inc()
        if lease is not None:
            self._leases.give_back(lease, dissolve=fault == "too large")

    def _fault(self, address: str, why: str) -> None:
        log.warning("cache.failed: %s at %s, left alone for %.0f s", why, address, PAUSE_S)
        self._faults.labels(why).inc()
        self._pauses.failed(address, time.monotonic())

    def _ranked(self, key: bytes) -> list[str]:
        version = self._membership.version
        if self._known[0] != version:
            addresses = [record.address for record in self._membership.services_of("cache")]
            self._known = version, addresses
        return rank_caches(self._known[1], key)
