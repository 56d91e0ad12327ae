"""The cache's RPCs, on top of the store."""

import hashlib
import hmac

import grpc

from stagemesh.errors import InvalidArgument
from stagemesh.v1.cache_pb2 import (
    CacheInvalidateRequest,
    CacheInvalidateResponse,
    CacheLookupRequest,
    CacheLookupResponse,
    CacheStats,
    CacheStatsRequest,
    CacheStoreRequest,
    CacheStoreResponse,
)
from stagemesh.v1.cache_pb2_grpc import CacheServiceServicer

from .measures import Measures
from .store import EntryStore

KEY_BYTES = 32
MAX_TENANT = 256
MAX_TAGS = 16
MAX_TAG = 256


class CacheServicer(CacheServiceServicer):
    """Checks what comes in, and counts. The store is used on the event loop only."""

    def __init__(self, store: EntryStore, *, default_ttl_s: int, measures: Measures) -> None:
        self._store = store
        self._default_ttl_s = default_ttl_s
        self._measures = measures

    def __repr__(self) -> str:
        return f"CacheServicer({self._store!r})"

    async def Lookup(
        self, request: CacheLookupRequest, context: grpc.aio.ServicerContext
    ) -> CacheLookupResponse:
        """Return the value, or `hit` false. Raises `InvalidArgument` for a malformed key or tenant."""
        _check_key(request.tenant, request.key)
        with self._measures.timed("lookup"):
            found = self._store.lookup(request.tenant, request.key)
        self._measures.lookup(hit=found is not None)
        if found is None:
            return CacheLookupResponse()
        entry, age_s = found
        return CacheLookupResponse(hit=True, value=entry.value, digest=entry.digest, age_s=age_s)

    async def Store(
        self, request: CacheStoreRequest, context: grpc.aio.ServicerContext
    ) -> CacheStoreResponse:
        """Keep a value if its digest is right and it is not too large; otherwise say why not."""
        _check_key(request.tenant, request.key)
        if len(request.tags) > MAX_TAGS or any(not 0 < len(tag) <= MAX_TAG for tag in request.tags):
            raise InvalidArgument(f"tags: at most {MAX_TAGS}, of 1 to {MAX_TAG} characters", field="tags")
        with self._measures.timed("store"):
            reason = self._keep(request)
        self._measures.store(kept=not reason)
        return CacheStoreResponse(stored=not reason, reason=reason)

    async def Invalidate(
        self, request: CacheInvalidateRequest, context: grpc.aio.ServicerContext
    ) -> CacheInvalidateResponse:
        """Drop entries by tenant and tag."""
        with self._measures.timed("invalidate"):
            dropped = self._store.invalidate(tenant=request.tenant, tag=request.tag)
        return CacheInvalidateResponse(entries=dropped)

    async def GetStats(self, request: CacheStatsRequest, context: grpc.aio.ServicerContext) -> CacheStats:
        """Counts since the start, and what is held now."""
        stats = self._store.stats
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
        )

    def _keep(self, request: CacheStoreRequest) -> str:
        if not hmac.compare_digest(hashlib.sha256(request.value).digest(), request.digest):
            return self._store.reject("the digest is not the SHA-256 of the value")
        return self._store.store(
            request.tenant,
            request.key,
            request.value,
            request.digest,
            ttl_s=request.ttl_s or self._default_ttl_s,
            tags=request.tags,
        )


def _check_key(tenant: str, key: bytes) -> None:
    if not 0 < len(tenant) <= MAX_TENANT:
        raise InvalidArgument(f"tenant: must have 1 to {MAX_TENANT} characters", field="tenant")
    if len(key) != KEY_BYTES:
        raise InvalidArgument(f"key: must be a SHA-256 of {KEY_BYTES} bytes, not {len(key)}", field="key")
