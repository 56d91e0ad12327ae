"""A stage cut down to its threads: a gRPC server whose stream of frames is computed, pass by pass, in one of two layouts.

`--layout one`: the event loop and a compute thread in this process. `--layout two`: this process moves frames, a child
computes; they share memory for the tensors and two pipes for who has what. Beside the work a `Ping` stream echoes frames
from the event loop.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import psutil

from bench.children import announce_port
from bench.threads_pipe import Beside
from stagemesh.grpc_server import GrpcServer, serve_until_signal
from stagemesh.tensor import TensorView, decode_frame, encode_frame
from stagemesh.v1.stage_pb2 import Frame, HopRecord

SERVICE = "bench.Threads"


class Compute(Protocol):
    """Where passes run, one at a time, in the order that they were handed in."""

    pids: list[int]

    async def run(self, tensor: TensorView) -> tuple[TensorView, float]:
        """One pass, and its seconds."""


class Thread:
    """A compute thread in this process."""

    def __init__(self, model: str, dtype: str, fast: bool, core: int | None) -> None:
        from bench.threads_compute import Passes

        self.pids = [os.getpid()]
        self._passes = Passes(model, dtype, fast)
        self._pool = ThreadPoolExecutor(1)
        if core is not None:
            # Threads inherit: those of gRPC start later, from this one.
            self._pool.submit(os.sched_setaffinity, 0, {core}).result()
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {core})

    async def run(self, tensor: TensorView) -> tuple[TensorView, float]:
        """See `Compute`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._passes.run, tensor.data)


class Handlers:
    """What the server answers."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def work(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Every frame through a pass, in order; the pass's time is in the answer's hop record."""
        passes: asyncio.Queue[asyncio.Task[tuple[TensorView, float]] | None] = asyncio.Queue()

        async def take() -> None:
            async for data in requests:
                _, tensor = decode_frame(data)
                assert tensor is not None
                passes.put_nowait(asyncio.create_task(self._compute.run(tensor)))
            passes.put_nowait(None)

        taking = asyncio.create_task(take())
        while task := await passes.get():
            out, seconds = await task
            yield encode_frame(Frame(hops=[HopRecord(compute_us=int(seconds * 1e6))]), out)
        await taking

    async def ping(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """Every frame back, read and written by the codec as a frame that is passed on would be."""
        async for data in requests:
            yield encode_frame(*decode_frame(data))

    async def switch_interval(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Set how long a thread may keep the GIL that another wants, in seconds."""
        sys.setswitchinterval(float(request))
        return b""

    async def usage(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """CPU seconds so far, of all processes of this stage."""
        times = [psutil.Process(pid).cpu_times() for pid in self._compute.pids]
        return str(sum(time.user + time.system for time in times)).encode()


async def main(args: argparse.Namespace) -> None:
    """Serve until the benchmark ends this process."""
    compute: Compute
    if args.layout == "one":
        compute = Thread(args.model, args.dtype, not args.plain, args.core)
    else:
        compute = Beside(args.model, args.dtype, not args.plain)
        await compute.start()
    handlers = Handlers(compute)
    server = GrpcServer("127.0.0.1", 0)
    methods = {
        "Work": grpc.stream_stream_rpc_method_handler(handlers.work, None, None),
        "Ping": grpc.stream_stream_rpc_method_handler(handlers.ping, None, None),
        "SwitchInterval": grpc.unary_unary_rpc_method_handler(handlers.switch_interval, None, None),
        "Usage": grpc.unary_unary_rpc_method_handler(handlers.usage, None, None),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    announce_port(args.port_file, await server.start([SERVICE]))
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    parser.add_argument("--layout", choices=["one", "two"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--core", type=int, help="for the compute thread alone")
    asyncio.run(main(parser.parse_args()))
