"""Says what is going on, with the time since the start: at least every two seconds, on a terminal or not."""

import asyncio
import time
from types import TracebackType

from rich.console import Console

_QUIET_S = 2.0


class Progress:
    """`async with Progress(console) as progress: progress("loading")` prints each line, and repeats it while busy.

    Busy from the start; `idle` ends the repeating, not the printing, and `busy` resumes it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._said_at = self._started
        self._line = ""
        self._busy = True
        self._ticker: asyncio.Task[None] | None = None

    def __call__(self, line: str) -> None:
        """Something happened."""
        self._line = line
        self._print(line)

    def idle(self) -> None:
        """Nothing is being waited for."""
        self._busy = False

    def busy(self, line: str) -> None:
        """Something is being waited for."""
        self._busy = True
        self(line)

    def _print(self, line: str) -> None:
        self._said_at = time.monotonic()
        self._console.print(
            f"[{self._said_at - self._started:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_QUIET_S / 4)
            if self._busy and self._line and time.monotonic() - self._said_at >= _QUIET_S * 0.75:
                self._print(f"... {self._line}")

    async def __aenter__(self) -> "Progress":
        self._ticker = asyncio.create_task(self._tick(), name="progress")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
