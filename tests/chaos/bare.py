"""A gRPC service that does nothing, in a process of its own: what any call takes on this machine at that moment."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

_METHOD = "/stagemesh.tests.Bare/Call"
_EVERY_S = 0.02


async def _serve() -> None:
    async def call(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("stagemesh.tests.Bare", {"Call": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone
    await server.stop(0)


@asynccontextmanager
async def bare_calls() -> AsyncIterator[list[float]]:
    """Seconds that each call took, of about 50 a second, each begun at a fixed time whether the one before has ended or not."""
    took: list[float] = []
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(await asyncio.wait_for(server.stdout.readline(), 60))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.TaskGroup() as group:
            call = channel.unary_unary(_METHOD)
            await call(bytes(256), timeout=60, wait_for_ready=True)

            async def one() -> None:
                began = time.monotonic()
                await call(bytes(256), timeout=60)
                took.append(time.monotonic() - began)

            async def all_the_time() -> None:
                while True:
                    group.create_task(one())
                    await asyncio.sleep(_EVERY_S)

            calls = group.create_task(all_the_time())
            try:
                yield took
            finally:
                calls.cancel()
    finally:
        server.stdin.close()
        with suppress(ProcessLookupError):
            server.terminate()
        await server.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
