"""A `grpc.aio` server that takes many calls at once.

`grpc.aio` asks its core for one call at a time: between two of them lie five turns of the event loop and a wake-up of its
polling thread. When each turn takes milliseconds, as in a router that starts many sessions at once, new calls wait for
hundreds of them, those too that would be refused at once. Here a number of calls is asked for in advance, so that two
turns lie between two of them.

This overrides two methods of `grpc.aio`'s inner server that are not documented; where they are missing, its own server is used.
"""

import asyncio
from collections import deque
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

CALLS_ASKED_FOR = 16


class _Accepting(cygrpc.AioServer):  # type: ignore[misc]
    """The inner server; tasks of its own wait for calls, and its main loop gets those that have come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *rest: Any) -> None:
        super().__init__(loop, *rest)
        self._of_loop = loop
        self._came: deque[Any] = deque()
        self._next: asyncio.Future[Any] | None = None
        self._over: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Future[Any]":
        """What the main loop waits for: the next call. With a method, of those registered; ours never are."""
        if method is not None:
            return super()._make_request_call_future(method)  # type: ignore[no-any-return]
        if not self._tasks and self._over is None:
            self._tasks = {self._of_loop.create_task(self._take_calls()) for _ in range(CALLS_ASKED_FOR)}
        self._next = self._of_loop.create_future()
        if self._came:
            self._next.set_result(self._came.popleft())
        elif self._over is not None:
            self._next.set_exception(self._over)
        return self._next

    async def _take_calls(self) -> None:
        """Until the core gives no more: the server stops."""
        while self._over is None:
            try:
                call = await self._request_call()
            except Exception as error:  # of the inner server's own kinds
                self._end(error)
                return
            if self._over is not None:
                return
            if self._next is not None and not self._next.done():
                self._next.set_result(call)
            else:
                self._came.append(call)

    def _end(self, error: Exception) -> None:
        """Nobody takes calls any more. Those that nobody has begun are let go, or the server would wait for their end."""
        if self._over is None:
            self._over = error
            self._came.clear()
            if self._next is not None and not self._next.done():
                self._next.set_exception(error)


class _Server(_server.Server):  # type: ignore[misc]
    """`grpc.aio`'s own, around the inner server above."""

    def __init__(self, options: list[tuple[str, Any]], most_calls: int | None) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Accepting(self._loop, None, (), (), tuple(options), most_calls)


def server(options: list[tuple[str, Any]], maximum_concurrent_rpcs: int | None) -> grpc.aio.Server:
    """As `grpc.aio.server`, without interceptors and threads."""
    if all(hasattr(cygrpc.AioServer, name) for name in ("_make_request_call_future", "_request_call")):
        return _Server(options, maximum_concurrent_rpcs)
    return grpc.aio.server(options=options, maximum_concurrent_rpcs=maximum_concurrent_rpcs)
