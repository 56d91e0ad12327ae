"""Starts a process again when it dies: at once the first time, then with growing delays."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from stagemesh.local.processes import ChildProcess

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 15.0
# A process that lived this long starts over with the shortest delay.
_SETTLED_S = 30.0


def restart_delay(deaths_in_a_row: int) -> float:
    """Seconds to wait before the next start; pure."""
    return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(deaths_in_a_row, 16)))


class Supervised:
    """One place in the mesh and the process that fills it now.

    `start_process` is given how often the place was filled before, so that a replacement can have a new name.
    """

    def __init__(
        self,
        name: str,
        start_process: Callable[[int], Awaitable[ChildProcess]],
        on_event: Callable[[str], None],
    ) -> None:
        self.name = name
        self.restarts = 0
        self.process: ChildProcess | None = None
        self._start_process = start_process
        self._on_event = on_event
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the first process; supervision begins with `supervise`."""
        self.process = await self._start_process(0)

    def supervise(self) -> None:
        """From now on, start a new process whenever the present one ends."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"supervise {self.name}")

    async def release(self) -> None:
        """Stop supervising; the process is left as it is."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self, grace_s: float) -> None:
        """Stop supervising and end the process."""
        await self.release()
        if self.process is not None:
            await self.process.stop(grace_s)

    async def _keep_alive(self) -> None:
        deaths = 0
        while True:
            assert self.process is not None
            started = time.monotonic()
            await self.process.wait()
            deaths = 0 if time.monotonic() - started > _SETTLED_S else deaths + 1
            delay = restart_delay(deaths)
            self._on_event(f"{self.process.ended_how()}; starting it again in {delay:.1f} s")
            await asyncio.sleep(delay)
            self.restarts += 1
            self.process = await self._start_process(self.restarts)

    def __repr__(self) -> str:
        return f"<Supervised {self.name} restarts={self.restarts} process={self.process}>"
