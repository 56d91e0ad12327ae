"""Where a partition computes: passes run one after another, the long ones on a thread beside the event loop.

torch releases the GIL inside its kernels, so one thread per partition computes while the loop moves frames.
Passes that are known to be short run on the loop's thread, since they take less time than waking another
(`short` decides). Passes that may (`Joint`) run as one with those that wait right behind them. What waits is bounded
by its users: a sender by its credits, the head by its links' room.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from stagemesh.errors import Unavailable

from .jobs import Job, JobQueue, Joint, Outcome, Timing, apart
from .precedence import give_way
from .short import ShortPasses, Size
from .watchdog import PassTimes

T = TypeVar("T")

log = logging.getLogger(__name__)

# Weight of the newest pass in the moving average.
_EWMA = 0.2


class Engine:
    """Runs callables in the order in which they came, never two at once, on a thread that is so much nicer."""

    def __init__(self, name: str, nice: int = 0) -> None:
        # Passes submitted whose `then` has not been called yet.
        self.waiting = 0
        # Moving average of a pass, in milliseconds.
        self.step_ms = 0.0
        # Passes that are done; microseconds that they waited, and that they took.
        self.passes = 0
        self.queued_us = 0
        self.computed_us = 0
        # Passes that ran on the loop's thread, and those that ran as one with the pass before them.
        self.on_loop = 0
        self.joined = 0
        # Passes that began, and the one that runs now; with what is usual, for whoever looks for one that hangs.
        self.begun = 0
        self.running: Job | None = None
        self.times = PassTimes()
        self._name = name
        self._nice = nice
        self._short = ShortPasses()
        # Whether a pass ran on the loop's thread since the loop last turned.
        self.ran_this_turn = False
        self._ended = 0.0
        self._closed = ""
        self._jobs = JobQueue()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Engine waiting={self.waiting} step_ms={self.step_ms:.2f} on_loop={self.on_loop} {self._short!r}>"

    def submit(
        self,
        work: Callable[[], T],
        then: Callable[[Outcome[T]], None],
        size: Size | None = None,
        joint: Joint | None = None,
    ) -> None:
        """Run `work` after everything submitted before it, and call `then` on the loop, always and in order.

        A pass whose `size` (see `short.size_of`) is known to be short runs now, when nothing waits and the loop
        has turned since the last one; without `size` it runs on the thread. With `joint`, which is the same pass as `work`,
        those like it that wait behind it when its turn comes are computed with it.
        """
        job = Job(work, then, size, time.time(), joint)
        if self._closed:
            self._drop(job)
        elif size is not None and not self.waiting and not self.ran_this_turn and self._short.allow(size):
            self.ran_this_turn = True
            asyncio.get_running_loop().call_soon(self._turned)
            self.waiting += 1
            self.on_loop += 1
            self._end(job, self._compute(job))
        else:
            self.waiting += 1
            if self._thread is None:
                loop = asyncio.get_running_loop()
                self._thread = threading.Thread(
                    target=self._work, args=(loop,), name=f"compute-{self._name}", daemon=True
                )
                self._thread.start()
            self._jobs.put(job)

    async def run(self, work: Callable[[], T]) -> tuple[T, Timing]:
        """Run `work` on the compute thread; return its result and its times.

        Cancelling the caller does not stop a pass that has begun: what it wrote stays consistent.
        """
        future: asyncio.Future[Outcome[T]] = asyncio.get_running_loop().create_future()
        self.submit(work, lambda outcome: None if future.done() else future.set_result(outcome))
        outcome = await future
        if outcome.error is not None:
            raise outcome.error
        return outcome.result, outcome.timing  # type: ignore[return-value]

    def close(self, why: str = "the replica is shutting down") -> None:
        """Let the thread end after the pass it is in; does not wait. What is queued, or comes later, fails."""
        self._closed = self._closed or why
        for job in self._jobs.take_all():
            self.waiting -= 1
            self._drop(job)
        self._jobs.put(None)

    def _turned(self) -> None:
        self.ran_this_turn = False

    def _drop(self, job: Job) -> None:
        job.then(self._dropped(job))

    def _dropped(self, job: Job) -> Outcome[Any]:
        now = time.time()
        return Outcome(Timing(job.queued, now, now, 0.0), error=Unavailable(self._closed))

    def _compute(self, job: Job) -> Outcome[Any]:
        """Run one; on whichever thread, but never on two at once."""
        job.thread = threading.get_native_id()
        self.begun += 1
        self.running = job
        started = time.time()
        result, failure = None, None
        try:
            result = job.work()
        except Exception as error:
            failure = error
        self.running = None
        before, self._ended = self._ended, time.time()
        return Outcome(Timing(job.queued, started, self._ended, before), result, failure)

    def _end(self, job: Job, outcome: Outcome[Any]) -> None:
        """On the loop, in order."""
        self.waiting -= 1 + len(job.mates)
        timing = outcome.timing
        self.passes += 1
        self.joined += len(job.mates)
        self.queued_us += timing.queue_us
        self.computed_us += timing.compute_us
        ms = timing.compute_us / 1000
        self.step_ms = ms if self.step_ms == 0 else self.step_ms + _EWMA * (ms - self.step_ms)
        if job.size is not None:
            self._short.observe(job.size, ms)
            self.times.observe(job.size, ms / 1000)
        if not job.mates:
            job.then(outcome)
            return
        for each, own in zip([job, *job.mates], apart(job, outcome), strict=True):
            each.then(own)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The compute thread."""
        give_way(self._nice)
        while (job := self._jobs.get()) is not None:
            outcome = self._dropped(job) if self._closed else self._compute(job)
            try:
                loop.call_soon_threadsafe(self._end, job, outcome)
            except RuntimeError:
                return  # the loop is gone, and everybody who waited
