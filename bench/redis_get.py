"""What one would build instead of a cache service: a bare grpc.aio service that does a `GET` from a local Redis.

Started as `python -m bench.redis_get --port-file FILE --redis URL`. A request's first 32 bytes are the key; what else it
holds is payload, so that it is as large as the request that it stands beside. The answer is the value.
"""

import argparse
import asyncio
from typing import Any

import grpc
import redis.asyncio

from bench.children import announce_port
from stagemesh.process import serve_until_signal

SERVICE = "bench.RedisGet"
KEY_BYTES = 32


async def main(port_file: str, url: str) -> None:
    """Serve until the benchmark ends this process."""
    client: Any = redis.asyncio.from_url(url)

    async def get(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        found: bytes | None = await client.get(request[:KEY_BYTES])
        return found or b""

    server = grpc.aio.server()
    handlers = {"Get": grpc.unary_unary_rpc_method_handler(get)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce_port(port_file, port)
    await serve_until_signal()
    await server.stop(0)
    await client.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--redis", required=True)
    parsed = parser.parse_args()
    asyncio.run(main(parsed.port_file, parsed.redis))
