"""A request's part in a flight: it asks, it may hold the lease to compute, and it stores or gives the lease back."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import grpc.aio
from google.protobuf.message import Message

from stagemesh.v1 import cache_pb2, registry_pb2

from ..channels import Channels
from .controls import NONE, CacheControls

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
RENEWALS = 3
"""Times that a lease is renewed before it would end."""
RENEW_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class CacheUse(Generic[M]):
    """What to look up and to store: `key` None is nothing. `fault` says why a value cannot be the answer, or ""."""

    tenant: str
    key: bytes | None
    spec: registry_pb2.ModelSpec
    kind: type[M]
    fault: Callable[[M], str]
    deadline: float
    controls: CacheControls = NONE


@dataclass(frozen=True, slots=True)
class Lease:
    """Granted by the cache at `address`."""

    id: bytes
    address: str
    ttl_s: float


class Asked(Generic[M]):
    """What the cache said: `status`, and the `value` of a hit.

    A context manager around the computation of a miss: when it is left without `store`, the lease goes back and the
    next who waits computes.
    """

    def __init__(
        self,
        status: int,
        value: M | None = None,
        lease: Lease | None = None,
        *,
        keep: Callable[[M, Lease | None, float], None] | None = None,
        give_back: Callable[..., None] | None = None,
    ) -> None:
        self.status = status
        self.value = value
        self._lease = lease
        self._keep = keep
        self._give_back = give_back
        self._begun = time.monotonic()

    def __repr__(self) -> str:
        return f"Asked(status={self.status}, lease={self._lease is not None})"

    def __enter__(self) -> "Asked[M]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        if lease is not None and self._give_back is not None:
            self._give_back(lease)

    def dissolve(self) -> None:
        """Nothing will be stored, and nobody needs to wait for it."""
        lease, self._lease = self._lease, None
        if lease is not None and self._give_back is not None:
            self._give_back(lease, dissolve=True)

    def store(self, value: M) -> None:
        """Keep the whole answer, in the background; nothing happens where it must not be kept."""
        lease, self._lease = self._lease, None
        if self._keep is not None:
            self._keep(value, lease, self._begun)


class HeldLeases:
    """The leases of this router: renewed together while what they are for is being computed."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._held: dict[bytes, Lease] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"HeldLeases({len(self._held)})"

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, lease: Lease) -> None:
        """Renew it until it is dropped or given back."""
        self._held[lease.id] = lease
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), name="cache-leases")

    def drop(self, lease: Lease | None) -> None:
        """The answer is on its way, and ends it."""
        if lease is not None:
            self._held.pop(lease.id, None)

    def give_back(self, lease: Lease, *, dissolve: bool = False) -> None:
        """Without an answer. With `dissolve`, because it cannot be kept: nobody needs to wait for another."""
        self.drop(lease)
        request = cache_pb2.CacheLeasesRequest()
        (request.dissolve if dissolve else request.release).append(lease.id)
        task = asyncio.create_task(self._call(lease.address, request))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Give back what is held."""
        for lease in list(self._held.values()):
            self.give_back(lease)
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(min(lease.ttl_s for lease in self._held.values()) / RENEWALS)
            by_address: dict[str, cache_pb2.CacheLeasesRequest] = {}
            for lease in self._held.values():
                request = by_address.setdefault(lease.address, cache_pb2.CacheLeasesRequest())
                request.renew.append(lease.id)
            await asyncio.gather(*(self._call(*each) for each in by_address.items()))

    async def _call(self, address: str, request: cache_pb2.CacheLeasesRequest) -> None:
        try:
            answer = await self._channels.cache(address).Leases(request, timeout=RENEW_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("cache.leases_failed: %s at %s", error.code().name, address)
            return
        for lost in answer.lost:  # another one computes it too by now: the answer is stored all the same
            self._held.pop(lost, None)
