"""A time limit on another process, counted in this loop's own steps: what the loop was late is not the other one's fault.

A router that begins hundreds of requests at once has turns of tens of milliseconds. An answer that lies in the socket
meanwhile came in time, and a cache that gave it is not slow.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

STEPS = 5
"""A limit is waited for in so many equal steps, and each is one step however late the loop came to its end."""


async def patiently(answer: Awaitable[T], give_up: Callable[[], object], timeout_s: float) -> T:
    """The answer, if it comes before `timeout_s` has passed in steps.

    Args:
        answer: a future or a call.
        give_up: cancels it.
        timeout_s: seconds; longer by what this loop is late.

    Raises:
        TimeoutError: it did not come, and was given up.
    """
    loop = asyncio.get_running_loop()
    left = STEPS
    timer: asyncio.TimerHandle

    def step() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(timeout_s / STEPS, step)
        else:
            give_up()

    timer = loop.call_later(timeout_s / STEPS, step)
    try:
        return await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if left or (task is not None and task.cancelling()):
            raise  # who asked is no longer there
        raise TimeoutError from None
    finally:
        timer.cancel()
