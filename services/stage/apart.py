"""Blocking work on a thread of its own: if it never ends, it holds up neither other work nor the end of the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from .precedence import give_way

T = TypeVar("T")


async def apart(
    work: Callable[[], T], name: str, ended: Callable[[], None] = lambda: None, nice: int = 0
) -> T:
    """Run `work` and return its result; cancelling the caller leaves it to run on.

    Args:
        work: whatever blocks.
        name: of the thread.
        ended: called on the loop when it is over, cancelled or not.
        nice: how far it gives way to other threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def over(result: T | None, error: BaseException | None) -> None:
        ended()
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        give_way(nice)
        try:
            result = work()
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}")
        with contextlib.suppress(RuntimeError):  # the loop may be gone, and everybody who waited
            loop.call_soon_threadsafe(over, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
