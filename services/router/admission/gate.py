"""Waits where `admission` says so."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from stagemesh.errors import DeadlineExceeded, ResourceExhausted, StagemeshError, Unavailable

from .priority import Priority
from .queue import NO_MOVES, Admission, Ending, Moves, Refused, Ticket


class AdmissionGate:
    """`async with gate.admitted(...) as place:` runs the body when there is room."""

    def __init__(
        self,
        admission: Admission,
        on_refused: Callable[[Ticket, Refused], None] = lambda ticket, refused: None,
    ) -> None:
        self.admission = admission
        self._on_refused = on_refused
        self.closed = False
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        # Once it is closed: nothing runs or waits.
        self._idle = asyncio.Event()

    def admitted(
        self,
        deadline: float,
        *,
        model: str = "",
        priority: Priority = Priority.NORMAL,
        size: float = 1.0,
        begun: bool = False,
        tenant: str = "",
        weight: float = 1.0,
        model_weight: float = 1.0,
    ) -> "Place":
        """A context manager that enters once there is room.

        Args:
            deadline: monotonic seconds.
            model: whose requests it is among.
            priority: its class.
            size: units that it has at most, which `progress` counts.
            begun: it goes on here after it began at another router.
            tenant: whose it is.
            weight: the tenant's part beside others of its class, see `fair`.
            model_weight: the model's beside others.

        Raises:
            ResourceExhausted: the queue is full, or its turn would come too late.
            DeadlineExceeded: the deadline passed in the queue.
            Unavailable: the router is draining.
        """
        ticket = Ticket(
            model,
            priority,
            time.monotonic(),
            deadline,
            size=max(size, 1.0),
            begun=begun,
            tenant=tenant,
            weight=weight,
            model_weight=model_weight,
        )
        return Place(self, ticket)

    async def drained(self) -> None:
        """Admit nobody new and return when nothing runs or waits."""
        self.closed = True
        self._look_whether_idle()
        await self._idle.wait()

    def check_open(self) -> None:
        """Raises `Unavailable` when the router is draining."""
        if self.closed:
            raise Unavailable("the router is shutting down", retry_after_s=1.0)

    async def enter(self, ticket: Ticket) -> None:
        """Return when `ticket` runs; see `admitted`."""
        if self.closed:
            self.check_open()
        ticket.arrived = time.monotonic()
        if ticket.arrived >= ticket.deadline:
            raise DeadlineExceeded("the deadline had passed when the request came")
        try:
            moves = self.admission.arrive(ticket)
        except Refused as refused:
            self._on_refused(ticket, refused)
            raise
        if ticket not in moves.started:
            self._tell(moves)
            await self._wait(ticket)

    def leave(self, ticket: Ticket, ending: Ending) -> None:
        """`ticket` runs no longer."""
        moves = self.admission.leave(ticket, time.monotonic(), ending)
        if moves is not NO_MOVES:
            self._tell(moves)
        if self.closed:
            self._look_whether_idle()

    def progress(self, ticket: Ticket, units: float) -> None:
        """So many units of `ticket` are done."""
        moves = self.admission.progress(ticket, units, time.monotonic())
        if moves is not NO_MOVES:
            self._tell(moves)

    async def _wait(self, ticket: Ticket) -> None:
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(ticket.deadline - time.monotonic()):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave(ticket, Ending.CUT)  # the place was given in the same moment
            else:
                self.admission.abandon(ticket)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while the request waited for its turn") from None
            raise
        finally:
            del self._waiters[ticket]
            if self.closed:
                self._look_whether_idle()

    def _tell(self, moves: Moves) -> None:
        for ticket in moves.started:
            self._answer(ticket, None)
        for ticket, error in moves.refused:
            self._on_refused(ticket, error)
            self._answer(ticket, error)

    def _answer(self, ticket: Ticket, error: StagemeshError | None) -> None:
        waiter = self._waiters.get(ticket)
        if waiter is None:
            return  # it runs at once
        if not waiter.done():
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(None)
        elif error is None:
            self.leave(ticket, Ending.CUT)  # it went away in the same moment: the next one's turn

    def _look_whether_idle(self) -> None:
        if not self.admission.active and not self.admission.waiting:
            self._idle.set()


class Place:
    """One request's way through the gate. `done`: units that it will have done when it leaves, beside its `progress`."""

    __slots__ = ("_gate", "_ticket", "done")

    def __init__(self, gate: AdmissionGate, ticket: Ticket) -> None:
        self._gate = gate
        self._ticket = ticket
        self.done = 0.0

    @property
    def waited_s(self) -> float:
        """How long the request waited for its turn."""
        return self._ticket.started - self._ticket.arrived

    def progress(self, units: float) -> None:
        """So much of the request is done: tokens of a generation, rows of a batch."""
        self._gate.progress(self._ticket, units)

    def enter(self) -> Awaitable[None]:
        """Wait for it until the request runs; `leave` it then in any case. Raises what `admitted` says."""
        return self._gate.enter(self._ticket)

    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The request runs no longer; takes what an `__exit__` does."""
        if self.done:
            self._gate.progress(self._ticket, self.done)
        self._gate.leave(self._ticket, _ending(error))

    async def __aenter__(self) -> "Place":
        await self._gate.enter(self._ticket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(kind, error, trace)


def _ending(error: BaseException | None) -> Ending:
    if error is None:
        return Ending.WELL
    # With a field it is about the input, or about what reads the input.
    return Ending.FULL if isinstance(error, ResourceExhausted) and not error.field else Ending.CUT
