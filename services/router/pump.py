"""Run generations, each in one task from its first response to its last, and hand over what they say."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

T = TypeVar("T")

_AHEAD = 16
_AT_ONCE = 16


class Pump(Generic[T]):
    """Iterates over `(index of the source, item)`, in the order of arrival; items wait in a bounded queue.

    At most 16 sources run at a time. The first error of any of them ends the iteration with that error.
    `close` must be awaited; it cancels whatever still runs.
    """

    def __init__(self, sources: Sequence[AsyncIterator[T]]) -> None:
        self._queue: asyncio.Queue[tuple[int, T] | None] = asyncio.Queue(_AHEAD)
        self._peeked: tuple[int, T] | None = None
        self._ended = False
        self._closing = False
        self._task = asyncio.create_task(self._run(list(sources)))

    def __repr__(self) -> str:
        return f"Pump(waiting={self._queue.qsize()}, running={not self._task.done()})"

    async def peek(self) -> T:
        """Wait for the very first item, which the iteration will still give; raise the sources' error."""
        first = await anext(self)
        self._peeked = first
        return first[1]

    def __aiter__(self) -> AsyncIterator[tuple[int, T]]:
        return self

    async def __anext__(self) -> tuple[int, T]:
        if self._peeked is not None:
            item, self._peeked = self._peeked, None
            return item
        if self._ended:
            raise StopAsyncIteration
        got = await self._queue.get()
        if got is None:
            self._ended = True
            try:
                await self._task
            except BaseExceptionGroup as group:
                raise _first(group) from None
            raise StopAsyncIteration
        return got

    async def close(self) -> None:
        """Cancel what runs and wait until it has ended."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, sources: list[AsyncIterator[T]]) -> None:
        slots = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                for index, source in enumerate(sources):
                    group.create_task(self._one(index, source, slots))
        finally:
            if not self._closing:
                await self._queue.put(None)

    async def _one(self, index: int, source: AsyncIterator[T], slots: asyncio.Semaphore) -> None:
        async with slots, aclosing(source) as items:  # type: ignore[type-var]
            async for item in items:
                await self._queue.put((index, item))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
