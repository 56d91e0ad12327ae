"""One model's requests at the door: how many run, who waits, and what its throughput says of both. Pure.

Classes take turns by how long they have waited, and who of a class takes the turn is the tenant whose share it is (`fair`).
"""

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from .fair import FairQueue, Share
from .priority import Priority
from .throughput import Throughput
from .ticket import Ticket

USABLE = 0.6
"""Of the time that a request has, the part that it may be expected to run for."""
CAUTION = 1.2
"""How much longer than expected all may take before it was wrong to let a request wait."""
USABLE_UNSLOWED = 0.8
"""The same where it runs about as fast as it would with fewer others: that it is long is not their fault."""
REMEMBERED_S = 60.0
"""How long the time that callers of a class had is remembered."""
LOOK_AT = 16
"""Of those that wait, how many are looked at for one that may run."""
_WEIGHT = 0.1
"""Of the newest in what callers had."""
_LESS = 0.9
_PROBE_AFTER_S = 10.0
_PROBE = 1 / 32


class Lane(Share):
    """Requests of one model, and its share beside other models.

    Attributes:
        active: how many run.
        waiting: how many wait.
        throughput: what the model gets done.
        ceiling: how many the stages seem to have memory for.
        seen: when one came last.
        looked: when those that wait were looked at last.
    """

    def __init__(self, max_active: int, now: float) -> None:
        super().__init__(1.0)
        self.active = 0
        self.waiting = 0
        self.throughput = Throughput(now)
        self.ceiling = float(max_active)
        self.seen = float("-inf")
        self.looked = float("-inf")
        self._max_active = max_active
        self._full_at = float("-inf")
        self._waiting = {each: FairQueue() for each in Priority}
        # By class: what time its callers had, and when one came last.
        self._budgets: dict[Priority, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"Lane(active={self.active}, waiting={self.waiting}, weight={self.weight:g}, ceiling={self.ceiling:.1f}, {self.throughput!r})"

    def waiting_of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return len(self._waiting[priority])

    # ---- who waits ----

    def came(self, ticket: Ticket) -> None:
        """A request came, whatever becomes of it."""
        now = ticket.arrived
        budget = ticket.deadline - now
        known, at = self._budgets.get(ticket.priority, (budget, now))
        if now - at > REMEMBERED_S:
            known = budget
        self._budgets[ticket.priority] = known + _WEIGHT * (budget - known), now
        self.seen = now

    def wait(self, ticket: Ticket) -> None:
        """It has to wait."""
        self._waiting[ticket.priority].add(ticket)
        self.waiting += 1

    def forget(self, ticket: Ticket) -> bool:
        """It waits no longer; whether it did."""
        waited = self._waiting[ticket.priority].remove(ticket)
        self.waiting -= waited
        return waited

    def first_few(self) -> list[Ticket]:
        """Those whose turn is next, in order."""
        queues = [queue for queue in self._waiting.values() if queue]
        if len(queues) == 1:
            return queues[0].first_few(LOOK_AT)
        turns: list[Iterator[tuple[float, Ticket]]] = [_turns(queue) for queue in queues]
        return [ticket for _, ticket in islice(merge(*turns, key=lambda turn: turn[0]), LOOK_AT)]

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """How long one more like this would wait until those before it are through; 0 while nothing is known of it."""
        if not self.throughput.known(now):
            return 0.0
        before = self._waiting[ticket.priority].before(ticket)
        before += sum(queue.asked for each, queue in self._waiting.items() if each < ticket.priority)
        return self.throughput.run_s(1, before + ticket.size, now)

    # ---- who runs ----

    def has_room(self, ticket: Ticket, now: float) -> bool:
        """Whether one more may run: it is expected to end in good time, for itself and for those of higher classes."""
        if not self.active:
            return True
        if self.active + 1 > self.ceiling:
            return False
        budget = ticket.budget_s
        for priority, (known, at) in self._budgets.items():
            if priority < ticket.priority and now - at < REMEMBERED_S:
                budget = min(budget, known)
        throughput, at_once = self.throughput, self.active + 1
        if throughput.run_s(at_once, ticket.size, now) <= USABLE * budget:
            return True
        # Where each gets on as fast as with fewer others, one more gets more done: none takes longer for it.
        expected = throughput.run_s(self.active, ticket.size, now)
        return expected <= USABLE_UNSLOWED * budget and throughput.unslowed(at_once)

    def run_s(self, ticket: Ticket, now: float) -> float:
        """What it takes among those that run now; 0 while nothing is known of it."""
        if not self.throughput.known(now):
            return 0.0
        return self.throughput.run_s(self.active + 1, ticket.size, now)

    def start(self, ticket: Ticket, now: float) -> None:
        """It runs from now on."""
        if not self.active:
            self.throughput.woke(now)
        self.active += 1
        ticket.started = now
        ticket.charged = max(1.0, self.throughput.used * ticket.size)
        self._waiting[ticket.priority].charge(ticket, ticket.charged)

    def progress(self, ticket: Ticket, units: float, now: float) -> None:
        """So many units of it are done."""
        ticket.units += units
        self.throughput.add(units, now, self.active, waiting=self.waiting > 0)

    def left(self, ticket: Ticket, now: float, *, full: bool) -> None:
        """It is over. `full`: a stage had no memory for it."""
        self.active -= 1
        self._waiting[ticket.priority].settle(ticket, ticket.units - ticket.charged)
        if full:
            # By a part, as it may have been uncommonly large; to what runs, where many are refused.
            self.ceiling = max(1.0, float(self.active), _LESS * min(self.ceiling, self._max_active))
            self._full_at = now
        elif self.ceiling < self._max_active:
            # A little at a time, as each try that finds them full fails a request.
            self.ceiling += 1.0 if now - self._full_at > _PROBE_AFTER_S else _PROBE


def _turns(queue: FairQueue) -> Iterator[tuple[float, Ticket]]:
    """Of a class, whose turn is next, with the order of who came first: tenants share the turns that waiting earns."""
    by_arrival = (ticket.order for ticket in queue)
    return zip(by_arrival, queue.first_few(LOOK_AT), strict=False)
