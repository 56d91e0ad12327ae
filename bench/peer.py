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
from services.stage.handshake import introduce
from services.stage.link import RELAY_METHOD
from services.stage.parcels import Assembly
from services.stage.relay import CREDIT_BATCH, WINDOW
from services.stage.shared_memory import ReceivingLane
from stagemesh.grpc_server import MAX_MESSAGE_BYTES, GrpcServer, serve_until_signal
from stagemesh.malloc import keep_large_blocks
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello

SERVICE = "bench.Peer"


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


class Credits:
    """What goes back for messages that have been read: `batch` at once."""

    def __init__(self, batch: int = CREDIT_BATCH) -> None:
        self._batch = batch
        self._owed = 0

    def give(self) -> int:
        """For one more: how many to give back now."""
        self._owed = (self._owed + 1) % self._batch
        return 0 if self._owed else self._batch


def _taker(read: Callable[[bytes, ReceivingLane], int]) -> Any:
    """A stream that begins with a hello and gives credits back for the messages it has read."""

    async def take(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Feedback]:
        hello = Frame.FromString(await anext(requests)).hello
        lane = ReceivingLane.accept(hello.shared)
        # Who waits for a place in shared memory looks for one when it is told something.
        credits = Credits(1 if lane.accepted else CREDIT_BATCH)
        yield Feedback(hello=Hello(shared_accepted=lane.accepted), credits=WINDOW)
        async for data in requests:
            read(data, lane)
            if back := credits.give():
                yield Feedback(credits=back)

    return grpc.stream_stream_rpc_method_handler(take, None, Feedback.SerializeToString)


async def relay(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[Feedback]:
    """What a stage's `Relay` does with what comes in, without a replica behind it."""
    hello = Frame.FromString(await anext(requests)).hello
    lane, assembly, credits = ReceivingLane(None), Assembly(MAX_MESSAGE_BYTES), Credits()
    yield Feedback(hello=introduce(Hello(to_replica=hello.from_replica)), credits=WINDOW)
    async for data in requests:
        for found in assembly.frames(data):
            _, tensor = lane.decode(found.data, found.begin, found.end)
            assert tensor is not None
            np.frombuffer(tensor.data, np.uint8)
            if back := credits.give():
                yield Feedback(credits=back)


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
    service, _, method = RELAY_METHOD[1:].partition("/")
    taken = grpc.stream_stream_rpc_method_handler(relay, None, Feedback.SerializeToString)
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: taken}),))
    announce_port(port_file, await server.start([SERVICE]))
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    asyncio.run(main(parser.parse_args().port_file))
