"""How late the event loop runs: the first sign that something blocks it."""

import asyncio
from types import TracebackType

from stagemesh import metrics

_PERIOD_S = 0.25
# Weight of the newest sample; about two seconds of memory.
_WEIGHT = 0.2


class LoopLag:
    """Measures how much later than asked a sleeping task wakes. Use `start`/`stop` or `async with`."""

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self._period_s = period_s
        self._task: asyncio.Task[None] | None = None
        self._smoothed_s = 0.0
        self.worst_s = 0.0
        self._gauge = metrics.gauge("stagemesh_event_loop_lag_seconds", "Smoothed delay of the event loop.")

    def __repr__(self) -> str:
        return f"<LoopLag {self.milliseconds:.2f} ms worst={self.worst_s * 1e3:.1f} ms>"

    @property
    def milliseconds(self) -> float:
        """The smoothed lag of the last seconds, in milliseconds."""
        return self._smoothed_s * 1e3

    def start(self) -> None:
        """Begin measuring; needs a running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._measure(), name="loop-lag")

    async def stop(self) -> None:
        """End measuring."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def __aenter__(self) -> "LoopLag":
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._period_s
            await asyncio.sleep(self._period_s)
            self.observe(max(0.0, loop.time() - due))

    def observe(self, lag_s: float) -> None:
        """Take in one sample, in seconds."""
        self.worst_s = max(self.worst_s, lag_s)
        self._smoothed_s += _WEIGHT * (lag_s - self._smoothed_s)
        self._gauge.set(self._smoothed_s)
