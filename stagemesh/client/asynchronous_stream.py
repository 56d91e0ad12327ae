"""The chunks of a generation, for asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc.aio

from stagemesh.client.failover import Journey
from stagemesh.client.results import Chunk, Generation
from stagemesh.client.stream_state import StreamState
from stagemesh.client.wire import failure_of
from stagemesh.errors import Cancelled
from stagemesh.v1 import inference_pb2


class AsyncGenerationStream(StreamState):
    """Chunks of one generation, as they come: `async for chunk in stream`.

    `route`, `cache` and `request_id` are known from the first chunk on; `generation()` drains what is left and
    returns the whole. When its router goes away it goes on at another one, with the tokens it would have had.
    Leaving the loop early: `await stream.aclose()` (or `async with`) cancels the generation on every stage. Raises
    what `stagemesh.errors` names.
    """

    def __init__(
        self,
        request: inference_pb2.GenerateRequest,
        journey: Journey,
        call: Callable[[inference_pb2.GenerateRequest, Journey], Any],
    ) -> None:
        super().__init__(request, journey)
        self._make_call = call
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._call = self._make_call(self._received.request(), self._journey)
        self._responses = aiter(self._call)

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        while True:
            try:
                chunk = self._take(await anext(self._responses))
            except StopAsyncIteration:
                self._end()
                raise
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error, self.target)
                if self._closed:
                    raise failure.error from None
            else:
                if chunk is not None:
                    return chunk
                self._call.cancel()
                failure = self._began_anew()
            if self._over(failure):
                raise StopAsyncIteration
            await asyncio.sleep(self._wait_s(failure))
            if self._closed:
                raise Cancelled("the stream was closed")
            self._start()

    async def generation(self) -> Generation:
        """Read to the end and return the whole generation."""
        async for _ in self:
            pass
        return self._builder.build(self._ended or time.monotonic())

    async def aclose(self) -> None:
        """Cancel the generation if it still runs."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> "AsyncGenerationStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
