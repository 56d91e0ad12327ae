"""Calls that come at once are taken at once, also where each turn of the loop takes long; and a server with such calls stops."""

import asyncio
import time
from collections.abc import Callable

import grpc
import pytest

from stagemesh import grpc_accept

METHOD = "/t.Many/Call"
CALLS = 64


def handlers(call: Callable[..., object]) -> tuple[grpc.GenericRpcHandler, ...]:
    handler = grpc.unary_unary_rpc_method_handler(call)
    return (grpc.method_handlers_generic_handler("t.Many", {"Call": handler}),)


async def started(server: grpc.aio.Server, call: Callable[..., object]) -> str:
    server.add_generic_rpc_handlers(handlers(call))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return f"127.0.0.1:{port}"


async def turns_to_take(server: grpc.aio.Server) -> int:
    """Turns of an event loop, of 2 ms each, from the first to the last of 64 calls that were sent together."""
    entered: list[int] = []
    turns, over = 0, False

    async def call(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        entered.append(turns)
        return request

    address = await started(server, call)
    loop = asyncio.get_running_loop()

    def turn() -> None:
        nonlocal turns
        turns += 1
        time.sleep(0.002)
        if not over:
            loop.call_soon(turn)

    def ask() -> list[bytes]:
        with grpc.insecure_channel(address) as channel:
            asked = [channel.unary_unary(METHOD).future(b"%d" % n, timeout=60) for n in range(CALLS)]
            return [each.result() for each in asked]

    loop.call_soon(turn)
    try:
        assert await asyncio.to_thread(ask) == [b"%d" % n for n in range(CALLS)]
    finally:
        over = True
        await server.stop(0)
    assert len(entered) == CALLS
    return entered[-1] - entered[0]


async def test_many_calls_are_taken_in_few_turns_of_the_loop():
    ours = await turns_to_take(grpc_accept.server([], None))
    plain = await turns_to_take(grpc.aio.server())
    assert ours < 0.6 * plain, (ours, plain)


@pytest.mark.parametrize("grace", [0, 0.2])
async def test_a_server_stops_while_calls_come_and_wait(grace):
    """Those under way end by the grace; what nobody had begun does not keep it from ending."""
    waiting = asyncio.Event()

    async def call(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        waiting.set()
        await asyncio.sleep(60)
        return request

    server = grpc_accept.server([], None)
    address = await started(server, call)
    async with grpc.aio.insecure_channel(address) as channel:
        asked = [asyncio.ensure_future(channel.unary_unary(METHOD)(b"", timeout=60)) for _ in range(CALLS)]
        await waiting.wait()
        async with asyncio.timeout(30):
            await server.stop(grace)
            answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in answers} == {grpc.aio.AioRpcError}


async def test_calls_past_the_most_at_a_time_are_refused():
    release = asyncio.Event()

    async def call(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await release.wait()
        return request

    server = grpc_accept.server([], 4)
    address = await started(server, call)
    async with grpc.aio.insecure_channel(address) as channel:
        asked = [asyncio.ensure_future(channel.unary_unary(METHOD)(b"", timeout=60)) for _ in range(CALLS)]
        async with asyncio.timeout(30):
            while sum(each.done() for each in asked) < CALLS - 4:
                await asyncio.sleep(0.01)
        release.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
    await server.stop(0)
    refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert len(refused) == CALLS - 4
    assert {each.code() for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
