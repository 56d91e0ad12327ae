"""The other end of the transport and hop benchmarks: a gRPC server on loopback that takes frames and echoes.

Started as `python -m bench.peer --port-file FILE`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np

from bench.children import announce_port
from services.stage.shared_memory import ReceivingLane
from stagemesh.grpc_server import GrpcServer, serve_until_signal
from stagemesh.malloc import keep_large_blocks
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello

SERVICE = "bench.Peer"
# Frames that may be under way, as between two stages.
WINDOW = 16


def read_bytes(data: bytes, lane: ReceivingLane) -> int:
    """Bytes of a plain payload."""
    return np.frombuffer(data, np.uint8).nbytes


def read_frame(data: bytes, lane: ReceivingLane) -> int:
    """Bytes of the tensor of a frame, read by the hand codec."""
    _, tensor = lane.decode(data)
    assert tensor is not None
    return np.frombuffer(tensor.data, np.uint8).nbytes


def read_protobuf(data: bytes, lane: ReceivingLane) -> int:
    """Bytes of the tensor of a frame, read by the generated class."""
    return np.frombuffer(Frame.FromString(data).tensor.data, np.uint8).nbytes


def _taker(read: Callable[[bytes, ReceivingLane], int]) -> Any:
    """A stream that begins with a hello and gives a credit back for every message it has read."""

    async def take(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Feedback]:
        hello = Frame.FromString(await anext(requests)).hello
        lane = ReceivingLane.accept(hello.shared)
        yield Feedback(hello=Hello(shared_accepted=lane.accepted), credits=WINDOW)
        async for data in requests:
            read(data, lane)
            yield Feedback(credits=1)

    return grpc.stream_stream_rpc_method_handler(take, None, Feedback.SerializeToString)


async def main(port_file: str) -> None:
    """Serve until the benchmark ends this process."""
    keep_large_blocks()
    server = GrpcServer("127.0.0.1", 0)
    handlers = {
        "Bytes": _taker(read_bytes),
        "Frame": _taker(read_frame),
        "Protobuf": _taker(read_protobuf),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    announce_port(port_file, await server.start([SERVICE]))
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    asyncio.run(main(parser.parse_args().port_file))
