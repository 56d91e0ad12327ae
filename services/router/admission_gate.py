"""Waits where `admission` says so."""

import asyncio
import itertools
import time

from stagemesh.errors import DeadlineExceeded, Unavailable

from .admission import Admission


class AdmissionGate:
    """`async with gate.admitted(deadline):` runs the body when there is room."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._tickets = itertools.count()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self.closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def admitted(self, deadline: float) -> "_Admitted":
        """A context manager that enters once there is room.

        Raises `ResourceExhausted` when the queue is full, `DeadlineExceeded` when the deadline (monotonic seconds)
        passes in the queue, `Unavailable` while draining.
        """
        return _Admitted(self, deadline)

    async def _enter(self, deadline: float) -> None:
        if self.closed:
            raise Unavailable("the router is shutting down", retry_after_s=1.0)
        ticket = next(self._tickets)
        if not self.admission.arrive(ticket):
            await self._wait(ticket, deadline)
        self._idle.clear()

    async def drained(self) -> None:
        """Admit nobody new and return when nothing runs or waits."""
        self.closed = True
        await self._idle.wait()

    async def _wait(self, ticket: int, deadline: float) -> None:
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._leave(0.0)  # the place was given in the same moment
            else:
                self.admission.abandon(ticket)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while the request waited for its turn") from None
            raise
        finally:
            del self._waiters[ticket]

    def _leave(self, ran_s: float) -> None:
        while True:
            successor = self.admission.leave(ran_s)
            if successor is None:
                break
            waiter = self._waiters.get(successor)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
                return
        if self.admission.active == 0:
            self._idle.set()


class _Admitted:
    __slots__ = ("_deadline", "_gate", "_started")

    def __init__(self, gate: AdmissionGate, deadline: float) -> None:
        self._gate = gate
        self._deadline = deadline
        self._started = 0.0

    async def __aenter__(self) -> None:
        await self._gate._enter(self._deadline)
        self._started = time.monotonic()

    async def __aexit__(self, *_: object) -> None:
        self._gate._leave(time.monotonic() - self._started)
