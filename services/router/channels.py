"""One gRPC channel per address, kept while the mesh knows the address."""

import grpc.aio

from stagemesh.grpc_server import create_channel
from stagemesh.v1 import cache_pb2_grpc, stage_pb2_grpc


class Channels:
    """Opens channels on first use; `sweep` closes those nobody needs any more."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._open: dict[str, grpc.aio.Channel] = {}

    def __repr__(self) -> str:
        return f"Channels({sorted(self._open)})"

    def stage(self, address: str) -> stage_pb2_grpc.StageServiceStub:
        """Stub of the stage node at host:port."""
        return stage_pb2_grpc.StageServiceStub(self._channel(address))

    def cache(self, address: str) -> cache_pb2_grpc.CacheServiceStub:
        """Stub of the cache at host:port."""
        return cache_pb2_grpc.CacheServiceStub(self._channel(address))

    async def sweep(self, keep: set[str]) -> None:
        """Close channels to addresses outside `keep`; calls still running on them get a moment to end."""
        for address in [address for address in self._open if address not in keep]:
            await self._open.pop(address).close(grace=5.0)

    async def close(self) -> None:
        """Close every channel at once."""
        while self._open:
            await self._open.popitem()[1].close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._open.get(address)
        if channel is None:
            channel = create_channel(address, max_message_bytes=self._max_message_bytes)
            self._open[address] = channel
        return channel
