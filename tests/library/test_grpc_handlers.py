"""Handlers are wrapped when they are first called, once; what nobody serves leaves nothing behind."""

from typing import Any

import grpc
import pytest

from stagemesh.grpc_handlers import HandlerServer
from stagemesh.v1 import stage_pb2, stage_pb2_grpc
from tests.library.echo_service import METHODS, Echo, call


class Status(stage_pb2_grpc.StageServiceServicer):
    async def GetNodeStatus(self, request: Any, context: Any) -> stage_pb2.NodeStatus:
        return stage_pb2.NodeStatus(node_id="n")


@pytest.mark.asyncio
async def test_each_method_is_wrapped_once_from_the_inside_out() -> None:
    wrapped: list[tuple[str, str]] = []

    def wrap(name: str) -> Any:
        def around(handler: Any, method: str) -> Any:
            wrapped.append((name, method))
            return handler

        return around

    server = HandlerServer(grpc.aio.server(), [wrap("inner"), wrap("outer")])
    Echo().add_to(server)
    stage_pb2_grpc.add_StageServiceServicer_to_server(Status(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(3):
            for method in METHODS:
                assert await call(channel, method)
            stub = stage_pb2_grpc.StageServiceStub(channel)
            assert (await stub.GetNodeStatus(stage_pb2.GetNodeStatusRequest())).node_id == "n"
        paths = [*(f"/test.Echo/{method}" for method in METHODS), "/stagemesh.v1.StageService/GetNodeStatus"]
        assert wrapped == [(name, path) for path in paths for name in ("inner", "outer")]
        for number in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/test.Echo/no{number}")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert len(wrapped) == 2 * len(paths)
    await server.stop(0)
    assert await server.wait_for_termination() is False
