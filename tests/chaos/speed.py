"""How fast this machine is at a moment, whatever else runs on it: a fixed piece of work, by the CPU time that it takes.

Where others share a CPU's core and caches below the operating system, the same work takes more CPU time, and nothing else shows it.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_STEPS = 30_000
_EVERY_S = 0.25


def _work_s() -> float:
    """CPU seconds of about a millisecond's work."""
    began = time.thread_time()
    total = 0
    for step in range(_STEPS):
        total += step * step
    return time.thread_time() - began


@asynccontextmanager
async def measured_speed() -> AsyncIterator[list[float]]:
    """CPU seconds that the work took, four times a second."""
    took: list[float] = []

    async def all_the_time() -> None:
        while True:
            took.append(_work_s())
            await asyncio.sleep(_EVERY_S)

    task = asyncio.create_task(all_the_time())
    try:
        yield took
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
