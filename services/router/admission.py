"""Bounded concurrency and a bounded queue: overload is refused early. Pure; time comes in as an argument."""

from collections import OrderedDict

from stagemesh.errors import ResourceExhausted


class Admission:
    """Counts what runs and what waits, first come first served.

    `arrive` returns whether the ticket runs at once; a ticket that waits is named by a later `leave`.
    """

    def __init__(self, *, max_active: int, max_waiting: int) -> None:
        self.max_active = max_active
        self.max_waiting = max_waiting
        self.active = 0
        self.refused = 0
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._mean_s = 1.0

    def __repr__(self) -> str:
        return f"Admission(active={self.active}/{self.max_active}, waiting={self.waiting}/{self.max_waiting})"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def arrive(self, ticket: int) -> bool:
        """True: runs now. False: waits. Raises `ResourceExhausted` with `retry_after_s` when the queue is full."""
        if self.active < self.max_active:
            self.active += 1
            return True
        if len(self._waiting) >= self.max_waiting:
            self.refused += 1
            raise ResourceExhausted(
                f"the router is full: {self.active} requests run and {self.waiting} wait",
                retry_after_s=self.retry_after_s(),
            )
        self._waiting[ticket] = None
        return False

    def leave(self, ran_s: float) -> int | None:
        """One that ran for `ran_s` seconds is done; returns the ticket that takes its place, if one waits."""
        self._mean_s += 0.1 * (ran_s - self._mean_s)
        if self._waiting:
            return self._waiting.popitem(last=False)[0]
        self.active -= 1
        return None

    def abandon(self, ticket: int) -> None:
        """One that waits goes away; nothing happens when it does not wait."""
        self._waiting.pop(ticket, None)

    def retry_after_s(self) -> float:
        """When a place in the queue is likely to be free, 0.1 to 30 s."""
        return round(min(max(self._mean_s * (self.waiting + 1) / self.max_active, 0.1), 30.0), 2)
