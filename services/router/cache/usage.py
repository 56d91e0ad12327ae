"""What the caches spared each model, told to a cache now and then, which keeps the sums over restarts of routers."""

import asyncio
import hashlib
import logging

import grpc.aio

from stagemesh.v1 import cache_pb2
from stagemesh.v1 import semantic_pb2 as pb

from ..channels import Channels
from ..membership import Membership
from .choice import rank_caches

log = logging.getLogger(__name__)
TELL_S = 2.0
TIMEOUT_S = 2.0
MAX_MODELS = 1024


class CacheUsageCounter:
    """Counting is a few additions; `async with` owns the telling. What cannot be told is told later."""

    def __init__(self, membership: Membership, channels: Channels) -> None:
        self._membership = membership
        self._channels = channels
        self._untold: dict[str, pb.CacheUsage] = {}
        self._telling: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"CacheUsageCounter({len(self._untold)} models to tell of)"

    def miss(self, model: str) -> None:
        """The caches were asked in vain."""
        self._of(model).lookups += 1

    def hit(
        self,
        model: str,
        kept: cache_pb2.CachedGeneration | None = None,
        *,
        semantic: bool = False,
        nbytes: int = 0,
    ) -> None:
        """They had the answer: `kept` of a generation, or one of so many bytes."""
        usage = self._of(model)
        usage.lookups += 1
        if semantic:
            usage.semantic_hits += 1
        else:
            usage.exact_hits += 1
        usage.bytes_served += nbytes
        if kept is not None:
            usage.tokens_saved += sum(len(chunk.token_ids) for chunk in kept.chunks)
            usage.compute_ms_saved += kept.compute_ms
            usage.bytes_served += sum(len(chunk.text) for chunk in kept.chunks)

    def start(self) -> None:
        """Begin to tell."""
        self._telling = asyncio.create_task(self._tell_often(), name="cache-usage")

    async def close(self) -> None:
        """Tell what is left, if a cache is there to hear it."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            await self.tell()

    async def tell(self) -> None:
        """Send what has been counted since the last time."""
        addresses = [record.address for record in self._membership.services_of("cache")]
        if not self._untold or not addresses:
            return
        untold, self._untold = self._untold, {}
        requests: dict[str, pb.CacheUsageRequest] = {}
        for model, usage in untold.items():
            digest = hashlib.sha256(b"semantic" + model.encode()).digest()
            owner = rank_caches(addresses, digest)[0]
            requests.setdefault(owner, pb.CacheUsageRequest()).usage.append(usage)
        for address, request in requests.items():
            try:
                await self._channels.semantic(address).Count(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                log.debug("cache.usage_untold: %s at %s", error.code().name, address)
                for usage in request.usage:
                    self._add(usage)

    async def _tell_often(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            try:
                await self.tell()
            except Exception:
                log.exception("cache.usage_untold")

    def _add(self, more: pb.CacheUsage) -> None:
        held = self._of(more.model)
        for field in pb.CacheUsage.DESCRIPTOR.fields:
            if field.name != "model":
                setattr(held, field.name, getattr(held, field.name) + getattr(more, field.name))

    def _of(self, model: str) -> pb.CacheUsage:
        usage = self._untold.get(model)
        if usage is None:
            usage = self._untold[model] = pb.CacheUsage(model=model)
            while len(self._untold) > MAX_MODELS:
                self._untold.pop(next(iter(self._untold)))
        return usage
