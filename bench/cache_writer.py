"""Writes entries to a cache as routers do, as fast as it takes them: the other load of the cache benchmark.

Started as `python -m bench.cache_writer --port-file FILE --cache ADDRESS`. A call of `Run` with a number of seconds as text
returns "entries kept, entries refused, seconds" as text.
"""

# isort: off
import stagemesh.services  # type: ignore[import-not-found]  # noqa: F401 (first, as in every service)

# isort: on
import argparse
import asyncio
import hashlib
import itertools
import time

import grpc

from bench.children import announce_port
from stagemesh.grpc_server import create_channel
from stagemesh.process import serve_until_signal
from stagemesh.v1 import cache_pb2, cache_pb2_grpc

SERVICE = "bench.CacheWriter"
VALUE = bytes(range(256)) * 16
BATCH = 32
"""Entries in a call: what waits at a router while the call before it is under way."""
UNDER_WAY = 4
TENANT = "writer"


class Writer:
    """Entries of 4 KiB, each under a key that was never used."""

    def __init__(self, address: str) -> None:
        self._stub = cache_pb2_grpc.CacheServiceStub(create_channel(address))  # type: ignore[no-untyped-call]
        self._number = itertools.count()

    async def run(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Write for so many seconds."""
        kept = refused = 0
        started = time.perf_counter()
        until = started + float(request)

        async def one() -> None:
            nonlocal kept, refused
            while time.perf_counter() < until:
                answer = await self._stub.StoreMany(self._some(), timeout=10)
                stored = sum(result.stored for result in answer.results)
                kept += stored
                refused += len(answer.results) - stored

        await asyncio.gather(*(one() for _ in range(UNDER_WAY)))
        return f"{kept} {refused} {time.perf_counter() - started}".encode()

    def _some(self) -> cache_pb2.CacheStoreManyRequest:
        request = cache_pb2.CacheStoreManyRequest()
        for _ in range(BATCH):
            key = hashlib.sha256(b"%d" % next(self._number)).digest()
            request.entries.add(
                tenant=TENANT,
                key=key,
                value=VALUE,
                digest=hashlib.sha256(key + VALUE).digest(),
                ttl_s=3600,
                tags=["model:noop", "revision:r"],
                begun_ms_ago=10,
            )
        return request


async def main(port_file: str, address: str) -> None:
    """Serve until the benchmark ends this process."""
    server = grpc.aio.server()
    handlers = {"Run": grpc.unary_unary_rpc_method_handler(Writer(address).run)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce_port(port_file, port)
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--cache", required=True)
    parsed = parser.parse_args()
    asyncio.run(main(parsed.port_file, parsed.cache))
