"""Generic handlers of every kind for the tests of servers, interceptors and traces; messages are bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from opentelemetry import trace

NAME = "test.Echo"


def current_trace() -> str:
    """The trace id that a handler runs in, in hex; zeros when there is none."""
    return format(trace.get_current_span().get_span_context().trace_id, "032x")


class Echo:
    """Runs `action(request)` (which may raise) and answers with the request, once or three times."""

    def __init__(self) -> None:
        self.action: Callable[[bytes], Awaitable[None]] = self._nothing
        self.traces: list[str] = []
        self.ended: list[str] = []

    async def _nothing(self, request: bytes) -> None:
        pass

    async def _act(self, request: bytes) -> None:
        self.traces.append(current_trace())
        await self.action(request)

    async def unary(self, request: bytes, context: Any) -> bytes:
        await self._act(request)
        return request

    async def stream_yield(self, request: bytes, context: Any) -> Any:
        try:
            for _ in range(3):
                yield request
            await self._act(request)
        finally:
            self.ended.append("stream_yield")

    async def stream_write(self, request: bytes, context: Any) -> None:
        try:
            for _ in range(3):
                await context.write(request)
            await self._act(request)
        finally:
            self.ended.append("stream_write")

    async def collect(self, requests: Any, context: Any) -> bytes:
        result = b""
        async for request in requests:
            await self._act(request)
            result += request
        return result

    async def chat_yield(self, requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request
            await self._act(request)

    async def chat_write(self, requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)
            await self._act(request)

    async def endless(self, request: bytes, context: Any) -> Any:
        try:
            while True:
                yield request
                await asyncio.sleep(0.01)
        finally:
            self.ended.append("endless")

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {
            "unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "stream_yield": grpc.unary_stream_rpc_method_handler(self.stream_yield),
            "stream_write": grpc.unary_stream_rpc_method_handler(self.stream_write),
            "endless": grpc.unary_stream_rpc_method_handler(self.endless),
            "collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "chat_yield": grpc.stream_stream_rpc_method_handler(self.chat_yield),
            "chat_write": grpc.stream_stream_rpc_method_handler(self.chat_write),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


METHODS = ["unary", "stream_yield", "stream_write", "collect", "chat_yield", "chat_write"]


async def call(channel: Any, method: str, request: bytes = b"x") -> list[bytes]:
    """Call any method of Echo with one message; all answers."""
    path = f"/{NAME}/{method}"

    async def requests() -> Any:
        yield request

    if method == "unary":
        return [await channel.unary_unary(path)(request, timeout=10)]
    if method == "collect":
        return [await channel.stream_unary(path)(requests(), timeout=10)]
    if method.startswith("chat"):
        return [answer async for answer in channel.stream_stream(path)(requests(), timeout=10)]
    return [answer async for answer in channel.unary_stream(path)(request, timeout=10)]
