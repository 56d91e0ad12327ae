"""Leases on the event loop: who waits sleeps here until an answer, the lease or the end of its patience comes."""

import asyncio
import os
import time

from .leases import Handover, Key, Leases

LANDED = None
"""What a wait gives when there is an answer to look up."""
ALONE = b""
"""What a wait gives when the caller is to compute without a lease."""
_TICK_S = 0.25


class SingleFlight:
    """`async with` runs the clock of the leases. Used on the event loop only."""

    def __init__(self, *, ttl_s: float, max_flights: int, max_waiters: int) -> None:
        self.leases: Leases[asyncio.Future[bytes | None]] = Leases(
            ttl_s=ttl_s, max_flights=max_flights, max_waiters=max_waiters, new_id=lambda: os.urandom(16)
        )
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SingleFlight({self.leases!r})"

    async def __aenter__(self) -> "SingleFlight":
        self._task = asyncio.create_task(self._tick(), name="leases")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def take(self, key: Key) -> bytes | None:
        """See `Leases.take`."""
        return self.leases.take(key, time.monotonic())

    async def wait(self, key: Key, seconds: float) -> bytes | None:
        """`LANDED`, the lease that was handed over, or `ALONE`: nobody computes any more, or not in time."""
        waiter: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        if not self.leases.wait(key, waiter):
            return ALONE
        try:
            async with asyncio.timeout(seconds):
                return await waiter
        except TimeoutError:
            # Handed over in the very moment in which the wait ended: it is taken all the same.
            return waiter.result() if waiter.done() and not waiter.cancelled() else ALONE
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.release(waiter.result() or b"")
            raise
        finally:
            self.leases.leave(key, waiter)

    def renew(self, lease: bytes) -> bool:
        """See `Leases.renew`."""
        return self.leases.renew(lease, time.monotonic())

    def release(self, lease: bytes) -> None:
        """Give a lease back; the next who waits has it."""
        self._hand(self.leases.release(lease, time.monotonic()))

    def landed(self, key: Key) -> None:
        """Wake those who waited for an answer that is stored now."""
        _wake(self.leases.landed(key), LANDED)

    def dissolve(self, key: Key) -> None:
        """Let those who waited compute for themselves: their answer cannot be stored."""
        _wake(self.leases.dissolve(key), ALONE)

    def _hand(self, handover: Handover[asyncio.Future[bytes | None]] | None) -> None:
        # One whose call was cancelled meanwhile takes nothing; it goes on to the next.
        while handover is not None and handover.waiter.done():
            handover = self.leases.release(handover.lease, time.monotonic())
        if handover is not None:
            handover.waiter.set_result(handover.lease)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for handover in self.leases.expire(time.monotonic()):
                self._hand(handover)


def _wake(waiters: list[asyncio.Future[bytes | None]], what: bytes | None) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(what)
