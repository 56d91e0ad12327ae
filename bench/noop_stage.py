"""A stage that computes nothing: answers every micro-batch with zeros at once. The router benchmark's other end.

Started as `python -m bench.noop_stage --port-file FILE`.
"""

# isort: off
import stagemesh.services  # type: ignore[import-not-found]  # noqa: F401 (first, as in every service)

# isort: on
import argparse
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from bench.children import announce_port
from services.stage.forward_stream import forward_stream
from stagemesh.grpc_server import GrpcServer, run, serve_until_signal
from stagemesh.local_door import offer_door
from stagemesh.v1.stage_pb2 import (
    ForwardRequest,
    ForwardResponse,
    GetNodeStatusRequest,
    NodeStatus,
)
from stagemesh.v1.tensor_pb2 import Tensor

WIDTH = 16
_SERVICE = "stagemesh.v1.StageService"


async def _forward(request: ForwardRequest, context: grpc.aio.ServicerContext) -> ForwardResponse:
    rows = len(request.lengths)
    return ForwardResponse(
        outputs=[
            Tensor(name="sentence_embedding", dtype="F32", shape=(rows, WIDTH), data=bytes(4 * rows * WIDTH))
        ]
    )


async def _forward_stream(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
) -> AsyncIterator[bytes]:
    """As a stage serves it, computing aside."""

    async def forward(request: ForwardRequest) -> ForwardResponse:
        return await _forward(request, context)

    async with aclosing(forward_stream(requests, forward, door=await offer_door(context))) as replies:
        async for reply in replies:
            yield reply


async def _status(request: GetNodeStatusRequest, context: grpc.aio.ServicerContext) -> NodeStatus:
    return NodeStatus(node_id="noop")


async def main(port_file: str) -> None:
    """Serve until the benchmark ends this process."""
    server = GrpcServer("127.0.0.1", 0)
    unary = grpc.unary_unary_rpc_method_handler
    stage = {
        "Forward": unary(_forward, ForwardRequest.FromString, ForwardResponse.SerializeToString),
        "ForwardStream": grpc.stream_stream_rpc_method_handler(_forward_stream, None, None),
        "GetNodeStatus": unary(_status, GetNodeStatusRequest.FromString, NodeStatus.SerializeToString),
    }
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, stage),))
    port = await server.start([_SERVICE])
    await server.set_serving(True)
    announce_port(port_file, port)
    await serve_until_signal()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True)
    run(main(parser.parse_args().port_file))
