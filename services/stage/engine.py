"""The compute thread of a partition: passes run one after another, off the event loop.

torch releases the GIL inside its kernels, so one thread per partition computes while the loop moves frames.
The queue in front is bounded by its users: a link sends at most its credits, and the head one pass at a time.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# Weight of the newest pass in the moving average.
_EWMA = 0.2


@dataclass(slots=True)
class Timing:
    """When a pass was queued, started and ended, Unix seconds."""

    queued: float
    started: float
    ended: float

    @property
    def queue_us(self) -> int:
        """Microseconds spent waiting for the compute thread."""
        return max(0, int((self.started - self.queued) * 1e6))

    @property
    def compute_us(self) -> int:
        """Microseconds spent on the compute thread."""
        return max(0, int((self.ended - self.started) * 1e6))


class Engine:
    """Runs callables on one thread, in the order they came."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"compute-{name}")
        self.waiting = 0
        self.step_ms = 0.0

    def __repr__(self) -> str:
        return f"<Engine waiting={self.waiting} step_ms={self.step_ms:.2f}>"

    async def run(self, work: Callable[[], T]) -> tuple[T, Timing]:
        """Run `work` on the compute thread; return its result and its times.

        Cancelling the caller does not stop a pass that has begun: what it wrote stays consistent.
        """
        queued = time.time()
        self.waiting += 1

        def timed() -> tuple[T, Timing]:
            started = time.time()
            result = work()
            return result, Timing(queued, started, time.time())

        try:
            result, timing = await asyncio.get_running_loop().run_in_executor(self._executor, timed)
        finally:
            self.waiting -= 1
        ms = timing.compute_us / 1000
        self.step_ms = ms if self.step_ms == 0 else self.step_ms + _EWMA * (ms - self.step_ms)
        return result, timing

    def close(self) -> None:
        """Let the thread end after what is queued; does not wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)
