"""One gRPC channel per address, kept while the mesh knows the address and for as long as calls run on it."""

import asyncio
import logging
from collections.abc import Iterable

import grpc.aio

from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2_grpc, registry_pb2_grpc, semantic_pb2_grpc, stage_pb2, stage_pb2_grpc

from .cache.lookups import LookupStream
from .forward_stream import ForwardStream

log = logging.getLogger(__name__)

_FORWARD_STREAM = "/stagemesh.v1.StageService/ForwardStream"
# An address that etcd has lost may well be alive: calls to it go on to their own deadlines, however far those are.
RETIRED_S = 86_400.0


class Channels:
    """Opens channels on first use; `sweep` closes those nobody needs any more."""

    def __init__(self, max_message_bytes: int, local_sockets: bool = True) -> None:
        self._max_message_bytes = max_message_bytes
        self._local_sockets = local_sockets
        self._open: dict[str, grpc.aio.Channel] = {}
        self._stages: dict[str, stage_pb2_grpc.StageServiceStub] = {}
        self._forwards: dict[str, ForwardStream] = {}
        self._caches: dict[str, cache_pb2_grpc.CacheServiceStub] = {}
        self._lookups: dict[str, LookupStream] = {}
        self._semantics: dict[str, semantic_pb2_grpc.SemanticServiceStub] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Channels({sorted(self._open)})"

    def stage(self, address: str) -> stage_pb2_grpc.StageServiceStub:
        """Stub of the stage node at host:port."""
        stub = self._stages.get(address)
        if stub is None:
            stub = self._stages[address] = stage_pb2_grpc.StageServiceStub(self._channel(address))
        return stub

    def forward(self, address: str) -> ForwardStream:
        """The stream of micro-batches to the stage node at host:port."""
        stream = self._forwards.get(address)
        if stream is None:
            make = self._channel(address).stream_stream(
                _FORWARD_STREAM,
                stage_pb2.ForwardRequest.SerializeToString,
                stage_pb2.ForwardReply.FromString,
            )
            stream = self._forwards[address] = ForwardStream(
                address,
                make,
                local_sockets=self._local_sockets,
                max_message_bytes=self._max_message_bytes,
            )
        return stream

    def cache(self, address: str) -> cache_pb2_grpc.CacheServiceStub:
        """Stub of the cache at host:port."""
        stub = self._caches.get(address)
        if stub is None:
            stub = self._caches[address] = cache_pb2_grpc.CacheServiceStub(self._channel(address))
        return stub

    def lookups(self, address: str) -> LookupStream:
        """The stream of lookups to the cache at host:port."""
        stream = self._lookups.get(address)
        if stream is None:
            stream = self._lookups[address] = LookupStream(address, self.cache(address).LookupStream)
        return stream

    def semantic(self, address: str) -> semantic_pb2_grpc.SemanticServiceStub:
        """Stub of the semantic layer of the cache at host:port."""
        stub = self._semantics.get(address)
        if stub is None:
            stub = self._semantics[address] = semantic_pb2_grpc.SemanticServiceStub(self._channel(address))
        return stub

    def registry(self, address: str) -> registry_pb2_grpc.RegistryServiceStub:
        """Stub of the registry at host:port; calls are rare."""
        return registry_pb2_grpc.RegistryServiceStub(self._channel(address))

    def connect(self, addresses: Iterable[str]) -> None:
        """Begin to connect to these, so that the first call to each does not spend its time on that."""
        for address in addresses:
            self._channel(address).get_state(try_to_connect=True)

    def sweep(self, keep: set[str]) -> None:
        """Use channels to addresses outside `keep` for no new call, and close each when its last one has ended."""
        for address in [address for address in self._open if address not in keep]:
            task = asyncio.create_task(_end(self._forget(address), RETIRED_S), name=f"retire {address}")
            self._retiring.add(task)
            task.add_done_callback(self._retired)

    async def close(self) -> None:
        """Close every channel at once. Calls on those that `sweep` retired are ended by whoever made them."""
        retiring = list(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        while self._open:
            await _end(self._forget(next(iter(self._open))), 0.0)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("channels.retire_failed", exc_info=task.exception())

    def _forget(self, address: str) -> "_Parts":
        """What goes to the address, which from now on gets others."""
        self._stages.pop(address, None)
        self._caches.pop(address, None)
        self._semantics.pop(address, None)
        return self._open.pop(address), self._forwards.pop(address, None), self._lookups.pop(address, None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._open.get(address)
        if channel is None:
            channel = create_channel(address, max_message_bytes=self._max_message_bytes)
            self._open[address] = channel
        return channel


_Parts = tuple[grpc.aio.Channel, ForwardStream | None, LookupStream | None]


async def _end(parts: _Parts, grace_s: float) -> None:
    """Close a channel once its calls have ended, after `grace_s` in any case."""
    channel, forwards, lookups = parts
    if lookups is not None:
        await lookups.close()
    if forwards is not None:
        # First, or an idle stream would hold the channel open for the whole grace.
        await forwards.close(grace_s)
    await channel.close(grace_s or None)
