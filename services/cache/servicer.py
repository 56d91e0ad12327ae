"""The cache's RPCs, on top of the store."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator

import grpc

from stagemesh.entry_store import Entry, EntryStore
from stagemesh.errors import InvalidArgument
from stagemesh.invalidation import MAX_TAG, MAX_TAGS
from stagemesh.v1.cache_pb2 import (
    CacheAnswers,
    CacheInvalidateRequest,
    CacheInvalidateResponse,
    CacheLeasesRequest,
    CacheLeasesResponse,
    CacheLookupRequest,
    CacheLookupResponse,
    CacheLookups,
    CacheStats,
    CacheStatsRequest,
    CacheStoreManyRequest,
    CacheStoreManyResponse,
    CacheStoreRequest,
    CacheStoreResponse,
)
from stagemesh.v1.cache_pb2_grpc import CacheServiceServicer

from .behind import Behind
from .measures import Measures
from .restore import restore
from .single_flight import ALONE, LANDED, SingleFlight
from .validity import Validity, ValidityWatch

KEY_BYTES = 32
MAX_TENANT = 256
MAX_LEASES = 4096
MAX_ENTRIES = 1024
SLICE = 16
"""Of many entries in one call so many are kept at a time; lookups go on in between."""
MAX_WAIT_S = 60.0
ANSWERS_BYTES = 2**20
"""Values in one message of a lookup stream, before the next one begins."""


class CacheServicer(CacheServiceServicer):
    """Checks what comes in, and counts. The store is used on the event loop only."""

    def __init__(
        self,
        store: EntryStore,
        behind: Behind,
        flights: SingleFlight,
        validity: Validity,
        watch: ValidityWatch,
        *,
        default_ttl_s: int,
        measures: Measures,
    ) -> None:
        self._store = store
        self._behind = behind
        self._flights = flights
        self._validity = validity
        self._watch = watch
        self._default_ttl_s = default_ttl_s
        self._measures = measures
        self._near_hits = 0
        # Open streams of lookups: whether each waits for the next one; None once it is to end.
        self._streams: dict[asyncio.Task[object], bool | None] = {}

    def __repr__(self) -> str:
        return f"CacheServicer({self._store!r}, {self._flights!r})"

    async def Lookup(
        self, request: CacheLookupRequest, context: grpc.aio.ServicerContext
    ) -> CacheLookupResponse:
        """Return the value; on a miss the lease, or after a wait what came of another's, when that is asked for.

        Raises `InvalidArgument` for a malformed key or tenant.
        """
        _check_key(request.tenant, request.key)
        return await self._answer(request)

    async def _answer(self, request: CacheLookupRequest) -> CacheLookupResponse:
        """The same for a request that was checked."""
        self._near_hits += request.near_hits
        found = await self._look(request)
        self._measures.lookup(hit=found is not None)
        if found is not None:
            return _hit(found)
        if not request.want_lease:
            return CacheLookupResponse()
        at = request.tenant, request.key
        lease = self._flights.take(at)
        if lease is None and request.wait_ms:
            lease = await self._flights.wait(at, min(request.wait_ms / 1000, MAX_WAIT_S))
            if lease is LANDED:
                found = await self._look(request)
                # Stored and gone again, or too old for this one: it computes by itself.
                return CacheLookupResponse() if found is None else _hit(found)
        if lease is None:
            return CacheLookupResponse(busy=True)
        if lease == ALONE:
            return CacheLookupResponse()
        return CacheLookupResponse(lease=lease, lease_ttl_ms=int(self._flights.leases.ttl_s * 1000))

    async def LookupStream(
        self, request_iterator: AsyncIterator[CacheLookups], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[CacheAnswers]:
        """Answer each at once, or say that it has to be asked alone: what takes its time would hold up the others.

        Raises `InvalidArgument` for a malformed key or tenant, which ends the stream.
        """
        task = asyncio.current_task()
        assert task is not None
        self._streams[task] = False
        try:
            while self._streams[task] is not None:
                self._streams[task] = True
                message = await anext(request_iterator)
                if self._streams[task]:
                    self._streams[task] = False
                for request in message.lookups:  # before any has taken a lease
                    _check_key(request.tenant, request.key)
                answers, size = CacheAnswers(), 0
                for request in message.lookups:
                    if request.wait_ms or self._behind.answers:
                        answers.answers.add(id=request.id, ask_alone=True)
                        continue
                    answer = await self._answer(request)
                    answer.id = request.id
                    answers.answers.append(answer)
                    size += len(answer.value)
                    if size >= ANSWERS_BYTES:
                        yield answers
                        answers, size = CacheAnswers(), 0
                if answers.answers:
                    yield answers
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if self._streams[task] is not None:
                raise
        finally:
            del self._streams[task]

    def end_streams(self) -> None:
        """Let go of the routers: they would keep their streams open for as long as the server waits for them."""
        for task, waits in self._streams.items():
            self._streams[task] = None
            if waits:  # cancelled anywhere else, gRPC would not end the call
                task.cancel()

    async def Store(
        self, request: CacheStoreRequest, context: grpc.aio.ServicerContext
    ) -> CacheStoreResponse:
        """Keep a value if its digest is right and it is not too large; otherwise say why not."""
        reason = self._keep(request)
        return CacheStoreResponse(stored=not reason, reason=reason)

    async def StoreMany(
        self, request: CacheStoreManyRequest, context: grpc.aio.ServicerContext
    ) -> CacheStoreManyResponse:
        """Keep each; a malformed one is refused with the reason, and the others are kept all the same."""
        if len(request.entries) > MAX_ENTRIES:
            raise InvalidArgument(f"entries: at most {MAX_ENTRIES} at once", field="entries")
        answer = CacheStoreManyResponse()
        for index, entry in enumerate(request.entries):
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            try:
                reason = self._keep(entry)
            except InvalidArgument as error:
                reason = self._store.reject(error.message)
            answer.results.add(stored=not reason, reason=reason)
        return answer

    def _keep(self, request: CacheStoreRequest) -> str:
        """Why it is not kept, or ""; raises `InvalidArgument` for what is malformed."""
        _check_key(request.tenant, request.key)
        if len(request.tags) > MAX_TAGS or any(not 0 < len(tag) <= MAX_TAG for tag in request.tags):
            raise InvalidArgument(f"tags: at most {MAX_TAGS}, of 1 to {MAX_TAG} characters", field="tags")
        at = request.tenant, request.key
        value, given = request.value, request.digest  # each look at a field is a copy
        with self._measures.timed("store"):
            digest = hashlib.sha256(at[1])
            digest.update(value)
            if not hmac.compare_digest(digest.digest(), given):
                reason = self._store.reject("the digest is not the SHA-256 of key and value")
                self._flights.release(request.lease)
            elif self._validity.outdated(at[0], request.tags, request.begun_ms_ago / 1000):
                reason = self._store.reject("it was invalidated while it was computed")
                self._flights.release(request.lease)
            else:
                ttl_s = request.ttl_s or self._default_ttl_s
                reason = self._store.store(*at, value, given, ttl_s=ttl_s, tags=request.tags)
                if reason:  # too large for anybody who waits for it, too
                    self._flights.dissolve(at)
                else:
                    self._flights.landed(at)
        self._measures.store(kept=not reason)
        return reason

    async def Leases(
        self, request: CacheLeasesRequest, context: grpc.aio.ServicerContext
    ) -> CacheLeasesResponse:
        """Renew and give back."""
        if len(request.renew) + len(request.release) + len(request.dissolve) > MAX_LEASES:
            raise InvalidArgument(f"renew: at most {MAX_LEASES} leases at once", field="renew")
        for lease in request.release:
            self._flights.release(lease)
        for lease in request.dissolve:
            if (at := self._flights.leases.key_of(lease)) is not None:
                self._flights.dissolve(at)
        return CacheLeasesResponse(lost=[each for each in request.renew if not self._flights.renew(each)])

    async def Invalidate(
        self, request: CacheInvalidateRequest, context: grpc.aio.ServicerContext
    ) -> CacheInvalidateResponse:
        """Drop entries by tenant, tags and prefix; the other caches are told."""
        with self._measures.timed("invalidate"):
            invalidation, dropped = await self._validity.carry_out(request)
        announced = await self._watch.announce(request, invalidation)
        return CacheInvalidateResponse(entries=dropped, id=invalidation, announced=announced)

    async def GetStats(self, request: CacheStatsRequest, context: grpc.aio.ServicerContext) -> CacheStats:
        """Counts since the start, and what is held now."""
        stats, flights, behind = self._store.stats, self._flights.leases, self._behind
        return CacheStats(
            entries=len(self._store),
            bytes_used=self._store.bytes_used,
            bytes_budget=self._store.max_bytes,
            hits=stats.hits,
            misses=stats.misses,
            stores=stats.stores,
            evictions=stats.evictions,
            expirations=stats.expirations,
            rejected=stats.rejected,
            invalidated=stats.invalidated,
            computed=flights.stats.computed,
            taken_over=flights.stats.taken_over,
            coalesced=flights.stats.coalesced,
            gave_up_waiting=flights.stats.gave_up,
            waiting=flights.waiting,
            behind=behind.name,
            writes_dropped=behind.stats.writes_dropped,
            writes_waiting=behind.stats.writes_waiting,
            restored=behind.stats.restored,
            near_hits=self._near_hits,
        )

    async def _look(self, request: CacheLookupRequest) -> tuple[Entry, float] | None:
        max_age_s = request.max_age_s if request.HasField("max_age_s") else None
        with self._measures.timed("lookup"):
            found = self._store.lookup(request.tenant, request.key, max_age_s)
        if found is not None or not self._behind.answers:
            return found
        asked_at = time.monotonic()
        row = await self._behind.find(request.tenant, request.key)
        if row is None or self._validity.outdated(row.tenant, row.tags, time.monotonic() - asked_at):
            return None
        if not restore(self._store, row):
            return None
        self._behind.stats.restored += 1
        self._store.stats.misses -= 1  # of this one lookup; the second look counts it
        return self._store.lookup(request.tenant, request.key, max_age_s)


def _hit(found: tuple[Entry, float]) -> CacheLookupResponse:
    entry, age_s = found
    left_s = entry.expires_at - entry.stored_at - age_s
    return CacheLookupResponse(
        hit=True,
        value=entry.value,
        digest=entry.digest,
        age_s=age_s,
        tags=entry.tags,
        ttl_left_ms=max(int(left_s * 1000), 0),
    )


def _check_key(tenant: str, key: bytes) -> None:
    if not 0 < len(tenant) <= MAX_TENANT:
        raise InvalidArgument(f"tenant: must have 1 to {MAX_TENANT} characters", field="tenant")
    if len(key) != KEY_BYTES:
        raise InvalidArgument(f"key: must be a SHA-256 of {KEY_BYTES} bytes, not {len(key)}", field="key")
