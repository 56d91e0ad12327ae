"""One model's requests at the door: how many run, who waits, and what its throughput says of both. Pure."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from .priority import Priority
from .throughput import Throughput

AGING_S = 10.0
"""A class goes before the next one by that much: whoever has waited longer than that is not overtaken by it any more."""
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


@dataclass(slots=True, eq=False)
class Ticket:
    """One request; times are monotonic seconds."""

    model: str
    priority: Priority
    arrived: float
    deadline: float
    started: float = 0.0
    # What it consists of at most, see `throughput`, and what of that is done.
    size: float = 1.0
    units: float = 0.0
    # It goes on here after it began at another router.
    begun: bool = False

    @property
    def order(self) -> float:
        """Whoever has the lower one goes first."""
        return self.arrived + self.priority * AGING_S

    @property
    def budget_s(self) -> float:
        """The time that it had when it came."""
        return self.deadline - self.arrived


class Lane:
    """Requests of one model.

    Attributes:
        active: how many run.
        throughput: what the model gets done.
        ceiling: how many the stages seem to have memory for.
        seen: when one came last.
    """

    def __init__(self, max_active: int, now: float) -> None:
        self.active = 0
        self.throughput = Throughput(now)
        self.ceiling = float(max_active)
        self.seen = float("-inf")
        self._max_active = max_active
        self._full_at = float("-inf")
        self._waiting: dict[Priority, OrderedDict[Ticket, None]] = {each: OrderedDict() for each in Priority}
        # Sizes of those that wait, by class.
        self._asked: dict[Priority, float] = dict.fromkeys(Priority, 0.0)
        # By class: what time its callers had, and when one came last.
        self._budgets: dict[Priority, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"Lane(active={self.active}, waiting={self.waiting}, ceiling={self.ceiling:.1f}, {self.throughput!r})"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def waiting_of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return len(self._waiting[priority])

    # ---- who waits ----

    def came(self, ticket: Ticket) -> None:
        """A request came, whatever becomes of it."""
        now, budget = ticket.arrived, ticket.budget_s
        known, at = self._budgets.get(ticket.priority, (budget, now))
        if now - at > REMEMBERED_S:
            known = budget
        self._budgets[ticket.priority] = known + _WEIGHT * (budget - known), now
        self.seen = now

    def wait(self, ticket: Ticket) -> None:
        """It has to wait."""
        self._waiting[ticket.priority][ticket] = None
        self._asked[ticket.priority] += ticket.size

    def forget(self, ticket: Ticket) -> bool:
        """It waits no longer; whether it did."""
        if self._waiting[ticket.priority].pop(ticket, self) is self:
            return False
        self._asked[ticket.priority] -= ticket.size
        return True

    def first_few(self) -> list[Ticket]:
        """Those whose turn is next, in order."""
        queues: list[Iterator[Ticket]] = [iter(queue) for queue in self._waiting.values() if queue]
        return list(islice(merge(*queues, key=lambda ticket: ticket.order), LOOK_AT))

    def youngest(self) -> Ticket | None:
        """Of the lowest class that waits, the one that came last."""
        for priority in reversed(Priority):
            if self._waiting[priority]:
                return next(reversed(self._waiting[priority]))
        return None

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """How long one more like this would wait until those before it are through; 0 while nothing is known of it."""
        if not self.throughput.known(now):
            return 0.0
        before = sum(size for each, size in self._asked.items() if each <= ticket.priority)
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

    def progress(self, ticket: Ticket, units: float, now: float) -> None:
        """So many units of it are done."""
        ticket.units += units
        self.throughput.add(units, now, self.active, waiting=self.waiting > 0)

    def left(self, ticket: Ticket, now: float, *, full: bool) -> None:
        """It is over. `full`: a stage had no memory for it."""
        self.active -= 1
        if full:
            # By a part, as it may have been uncommonly large; to what runs, where many are refused.
            self.ceiling = max(1.0, float(self.active), _LESS * min(self.ceiling, self._max_active))
            self._full_at = now
        elif self.ceiling < self._max_active:
            # A little at a time, as each try that finds them full fails a request.
            self.ceiling += 1.0 if now - self._full_at > _PROBE_AFTER_S else _PROBE
