"""A gRPC server that echoes bytes, or answers anything with 4 KiB, and nothing else, with gRPC's default settings: what a call costs at least.

Started as `python -m bench.bare --port-file FILE`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc

from bench.children import announce_port
from stagemesh.process import serve_until_signal

SERVICE = "bench.Bare"
_ANSWER = bytes(4096)


async def _echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


async def _answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return _ANSWER


async def _echo_stream(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
) -> AsyncIterator[bytes]:
    async for data in requests:
        yield data


async def main(port_file: str) -> None:
    """Serve until the benchmark ends this process."""
    server = grpc.aio.server()
    echo = {
        "Answer": grpc.unary_unary_rpc_method_handler(_answer),
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "PingPong": grpc.stream_stream_rpc_method_handler(_echo_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announce_port(port_file, port)
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    asyncio.run(main(parser.parse_args().port_file))
