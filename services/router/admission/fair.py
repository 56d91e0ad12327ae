"""Who goes next among tenants of one class: start-time fair queueing. Pure.

Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996: each tenant has a tag, a virtual time that moves on by units /
weight with what it is given; whoever has the lowest tag goes next, and who comes after an absence begins at the virtual time,
the tag of the latest one that went. Of its kind it is the one that need not know how long a request is before it is over: a
request is charged with what it may take, and when it ends with what it did take. A unit is a token, or a row of a batch.

Two tenants that always wait are given units as their weights are, but for the largest request of each; a tenant that
does not wait leaves its part to the others and saves nothing up.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import islice

from .ticket import Ticket

_STALE = 64
"""Of entries that count no more, how many are kept before they are thrown away, beside as many as count."""


class Clock:
    """The virtual time of those that share something: units that one of weight 1 was given."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class Share:
    """What one of those that share was given, as a virtual time."""

    __slots__ = ("tag", "weight")

    def __init__(self, weight: float) -> None:
        self.tag = 0.0
        self.weight = weight

    def wake(self, clock: Clock) -> None:
        """It waits from now on: what it did not use before is gone."""
        self.tag = max(self.tag, clock.now)

    def charge(self, clock: Clock, units: float) -> None:
        """It is given so many units now."""
        clock.now = max(clock.now, self.tag)
        self.tag += units / self.weight

    def begin(self, clock: Clock, units: float) -> None:
        """It did not wait, and is given so many units now: `wake` and `charge` in one."""
        if self.tag < clock.now:
            self.tag = clock.now
        else:
            clock.now = self.tag
        self.tag += units / self.weight

    def settle(self, units: float) -> None:
        """It took so many more than it was charged with, or fewer."""
        self.tag += units / self.weight


class _Flow(Share):
    """One tenant: those of its requests that wait, in order, and how large they are together."""

    __slots__ = ("asked", "number", "tickets")

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.asked = 0.0
        # Of the entry that counts.
        self.number = 0


class FairQueue:
    """Requests of one class and model that wait, by tenant.

    Adding, removing and charging are O(log tenants), `first_few(n)` is O(n log tenants).

    Attributes:
        asked: sizes of all that wait, together.
    """

    def __init__(self) -> None:
        self.asked = 0.0
        self._clock = Clock()
        self._flows: dict[str, _Flow] = {}
        # In the order in which they came.
        self._tickets: OrderedDict[Ticket, None] = OrderedDict()
        self._backlogged = 0
        self._weights = 0.0
        # (tag, number, flow); one whose flow has a newer one, or nobody who waits, counts no more.
        self._heap: list[tuple[float, int, _Flow]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)

    def __repr__(self) -> str:
        return f"FairQueue({len(self)} of {self._backlogged} tenants, {self.asked:g} units)"

    def add(self, ticket: Ticket) -> None:
        """It has to wait."""
        flow = self._flow(ticket)
        if not flow.tickets:
            flow.wake(self._clock)
            self._backlogged += 1
            self._weights += flow.weight
            self._push(flow)
        flow.tickets[ticket] = None
        flow.asked += ticket.size
        self._tickets[ticket] = None
        self.asked += ticket.size

    def remove(self, ticket: Ticket) -> bool:
        """It waits no longer; whether it did."""
        if self._tickets.pop(ticket, self) is self:
            return False
        flow = self._flows[ticket.tenant]
        del flow.tickets[ticket]
        flow.asked = flow.asked - ticket.size if flow.tickets else 0.0
        self.asked = self.asked - ticket.size if self._tickets else 0.0
        if not flow.tickets:
            self._backlogged -= 1
            self._weights = self._weights - flow.weight if self._backlogged else 0.0
            self._tidy()
        return True

    def charge(self, ticket: Ticket, units: float) -> None:
        """It begins to run and is expected to take so many units."""
        flow = self._flow(ticket)
        if not flow.tickets:
            flow.begin(self._clock, units)
            return
        flow.charge(self._clock, units)
        self._push(flow)

    def settle(self, ticket: Ticket, units: float) -> None:
        """It ended after so many more units than it was charged with, or fewer."""
        flow = self._flows.get(ticket.tenant)
        if flow is not None and units:
            flow.settle(units)
            if flow.tickets:
                self._push(flow)

    def before(self, ticket: Ticket) -> float:
        """Units that are to be begun before it if it waits from now on, about: others go first by their weights at most."""
        flow = self._flows.get(ticket.tenant)
        own = flow.asked if flow is not None else 0.0
        others = self._weights - (flow.weight if flow is not None and flow.tickets else 0.0)
        weight = flow.weight if flow is not None else ticket.weight
        return own + min(max(self.asked - own, 0.0), (own + ticket.size) * max(others, 0.0) / weight)

    def first_few(self, most: int) -> list[Ticket]:
        """Those whose turn is next, in order, if each takes what it may."""
        if self._backlogged <= 1:
            return list(islice(self._tickets, most))
        found: list[Ticket] = []
        taken: list[tuple[float, int, _Flow]] = []
        # Flows that had a turn here already, with what is left of them.
        again: list[tuple[float, int, _Flow, Iterator[Ticket]]] = []
        while len(found) < most:
            top = self._top()
            if again and (top is None or again[0][:2] < top[:2]):
                tag, number, flow, rest = heappop(again)
            elif top is not None:
                taken.append(heappop(self._heap))
                tag, number, flow = top
                rest = iter(flow.tickets)
            else:
                break
            ticket = next(rest, None)
            if ticket is not None:
                found.append(ticket)
                heappush(again, (tag + ticket.size / flow.weight, number, flow, rest))
        for entry in taken:
            heappush(self._heap, entry)
        return found

    def _flow(self, ticket: Ticket) -> _Flow:
        flow = self._flows.get(ticket.tenant)
        if flow is None:
            flow = self._flows[ticket.tenant] = _Flow(ticket.weight)
        elif flow.weight != ticket.weight:
            if flow.tickets:
                self._weights += ticket.weight - flow.weight
            flow.weight = ticket.weight
        return flow

    def _push(self, flow: _Flow) -> None:
        self._number += 1
        flow.number = self._number
        heappush(self._heap, (flow.tag, self._number, flow))
        if len(self._heap) > 2 * self._backlogged + _STALE:
            self._heap = [each for each in self._heap if self._counts(each)]
            heapify(self._heap)

    def _top(self) -> tuple[float, int, _Flow] | None:
        while self._heap:
            entry = self._heap[0]
            if self._counts(entry):
                return entry
            heappop(self._heap)
        return None

    @staticmethod
    def _counts(entry: tuple[float, int, _Flow]) -> bool:
        return entry[1] == entry[2].number and bool(entry[2].tickets)

    def _tidy(self) -> None:
        """Forget tenants that neither wait nor owe anything, now and then."""
        if len(self._flows) > 2 * self._backlogged + _STALE:
            now = self._clock.now
            self._flows = {name: flow for name, flow in self._flows.items() if flow.tickets or flow.tag > now}
