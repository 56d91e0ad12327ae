"""Micro-batches of a router that came in through the door: the same bounds and errors as on the stream beside it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from stagemesh.services.stage.forward_stream import forward_stream
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.errors import InvalidArgument
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer
from stagemesh.local_door import NETWORK_KEY, enter_offered, offer_door
from stagemesh.message_socket import MessageSocket
from stagemesh.same_network import network_id
from stagemesh.v1.stage_pb2 import ForwardReply, ForwardRequest
from tests.stage.test_forward_stream import METHOD, Node, eventually

pytestmark = pytest.mark.asyncio


class Router:
    """The stream, the socket beside it, and what came over that."""

    def __init__(self, call: grpc.aio.StreamStreamCall, connection: socket.socket) -> None:
        self.call = call
        self.got: list[ForwardReply] = []
        self.why: list[str] = []
        self.socket = MessageSocket(connection, self._take, self.why.append, 2**24)

    def _take(self, data: bytes) -> None:
        self.got.append(ForwardReply.FromString(data))

    def ask(self, **fields: object) -> None:
        self.socket.send(ForwardRequest(**fields).SerializeToString())


@asynccontextmanager
async def inside(node: Node, **limits: int) -> AsyncIterator[Router]:
    async def handle(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for reply in forward_stream(requests, node.forward, door=await offer_door(context), **limits):
            yield reply

    server = GrpcServer("127.0.0.1", 0)
    handlers = {"ForwardStream": grpc.stream_stream_rpc_method_handler(handle, None, None)}
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = await server.start([SERVICE])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        make = channel.stream_stream(METHOD, ForwardRequest.SerializeToString, ForwardReply.FromString)
        call = make(metadata=((NETWORK_KEY, network_id()),))
        connection = await enter_offered(call)
        assert connection is not None
        router = Router(call, connection)
        yield router
        router.socket.close()
    await server.stop(0)


async def test_answers_come_as_they_are_ready_and_each_by_its_own_way() -> None:
    node = Node()
    async with inside(node) as router:
        for session, name in enumerate("abc", start=1):
            router.ask(session=session, model=name)
        await router.call.write(ForwardRequest(session=4, model="d"))
        await eventually(lambda: node.running == 4)
        for name in "dcab":
            node.gate(name).set()
            await asyncio.sleep(0.01)
        assert (await router.call.read()).session == 4
        await eventually(lambda: len(router.got) == 3)
        assert [reply.session for reply in router.got] == [3, 1, 2]


async def test_bounds_doubles_and_cancels_count_over_both_ways() -> None:
    node = Node()
    async with inside(node, max_sessions=2) as router:
        router.ask(session=1, model="a")
        await router.call.write(ForwardRequest(session=2, model="b"))
        await eventually(lambda: node.running == 2)
        router.ask(session=3, model="c")
        router.ask(session=1, model="a")
        await eventually(lambda: len(router.got) == 2)
        codes = [reply.error.code for reply in router.got]
        assert codes == [
            grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
            grpc.StatusCode.ALREADY_EXISTS.value[0],
        ]
        router.ask(session=2, cancel=True)
        await eventually(lambda: node.cancelled["b"])


async def test_garbage_ends_the_stream_and_what_runs() -> None:
    node = Node()
    async with inside(node) as router:
        router.ask(session=1, model="a")
        await eventually(lambda: node.running)
        router.socket.send(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.call.read()
        assert isinstance(from_rpc_error(caught.value), InvalidArgument)
        await eventually(lambda: node.cancelled["a"] and router.why)


async def test_what_runs_is_cancelled_when_either_breaks() -> None:
    for stream in (True, False):
        node = Node()
        async with inside(node) as router:
            for session in range(1, 6):
                router.ask(session=session, model="a")
            await eventually(lambda node=node: node.running == 5)
            if stream:
                router.call.cancel()
                await eventually(lambda router=router: router.why)
            else:
                router.socket.close()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await router.call.read()
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await eventually(lambda node=node: node.cancelled["a"] == 5)


async def test_answers_that_nobody_reads_are_bounded() -> None:
    """What is refused is not queued for a router that reads nothing; the stream ends instead."""
    node = Node()
    node.gate("huge").set()
    async with inside(node, max_sessions=2) as router:
        asyncio.get_running_loop().remove_reader(router.socket._fd)
        for session in range(200):
            try:
                router.ask(session=session, model="huge")
            except ConnectionError:
                break
            await asyncio.sleep(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(router.call.read(), 20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert node.began["huge"] <= 6
