"""Who runs, who waits, and who is refused early. Pure; time comes in as an argument.

One more request makes all of a model's requests slower. So a request runs only while what the model gets done says that
it will end in time; till then it waits, by priority, and it is refused as soon as it cannot be answered before its
deadline: what is computed for nothing is what makes a full system answer nobody.
"""

from dataclasses import dataclass, field
from enum import Enum

from stagemesh.errors import ResourceExhausted

from .lane import CAUTION, REMEMBERED_S, Lane, Ticket
from .priority import Priority

__all__ = ["Admission", "Ending", "Moves", "Refused", "Ticket"]

SHARED = 7 / 8
"""Of all places, those that a model may take beyond its even share while others are asked for, too."""
BEGUN = 2
"""Answers that go on here after their router was lost run at once, up to so many times the places."""
LOOK_S = 0.05
"""Between two looks at those that wait, when nothing but progress is the reason."""
SOONEST_S, LATEST_S = 0.1, 30.0
"""Bounds of what a refused caller is told to wait."""


class Ending(Enum):
    """How a request left."""

    WELL = "well"
    # By its deadline, its caller, or an error.
    CUT = "cut"
    # A stage had no memory for it.
    FULL = "full"


class Refused(ResourceExhausted):
    """A request that is not admitted; `reason` is one of a few words: full, late or displaced."""

    reason = ""


@dataclass(slots=True)
class Moves:
    """What follows from something that happened: who begins to run, and who waits in vain, with the reason."""

    started: list[Ticket] = field(default_factory=list)
    refused: list[tuple[Ticket, Refused]] = field(default_factory=list)


class Admission:
    """Every request that runs or waits.

    Args:
        max_active: requests that run at once, of all models.
        max_waiting: requests that wait, of all models.
        max_wait_s: how long one may be expected to wait; longer where those that run take longer.
    """

    def __init__(self, *, max_active: int, max_waiting: int, max_wait_s: float = 10.0) -> None:
        self.max_active = max_active
        self.max_waiting = max_waiting
        self.max_wait_s = max_wait_s
        self.active = 0
        self.waiting = 0
        self._lanes: dict[str, Lane] = {}
        self._looked = float("-inf")

    def __repr__(self) -> str:
        return f"Admission(active={self.active}/{self.max_active}, waiting={self.waiting}/{self.max_waiting})"

    def lane(self, model: str, now: float = 0.0) -> Lane:
        """What is known of a model's requests."""
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(self.max_active, now)
        return lane

    def waiting_of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return sum(lane.waiting_of(priority) for lane in self._lanes.values())

    def arrive(self, ticket: Ticket) -> Moves:
        """A request comes: it is among those started, or it waits; one of a lower class may be refused for it.

        Raises:
            Refused: it is refused; `retry_after_s` says when to try again.
        """
        now, moves = ticket.arrived, Moves()
        lane = self.lane(ticket.model, now)
        lane.came(ticket)
        # What has begun elsewhere is half done, and its caller has nowhere else to go.
        begun = ticket.begun and self.active < BEGUN * self.max_active
        if begun or self._may_start(lane, ticket, now):
            self._start(lane, ticket, now, moves)
            return moves
        wait_s, run_s = lane.wait_s(ticket, now), lane.run_s(ticket, now)
        # Whoever may wait is to be answered, too: told late is told twice as badly.
        if now + CAUTION * (wait_s + run_s) > ticket.deadline:
            raise self._refusal(lane, ticket, now, "late", "its turn would come too late for its deadline")
        if wait_s > max(self.max_wait_s, run_s):
            raise self._refusal(lane, ticket, now, "full", f"its turn would come in about {wait_s:.0f} s")
        if self.waiting >= self.max_waiting:
            self._push_out(lane, ticket, moves)
        lane.wait(ticket)
        self.waiting += 1
        return moves

    def progress(self, ticket: Ticket, units: float, now: float) -> Moves:
        """So many units of a request that runs are done; more may begin where the model turns out to be faster."""
        lane = self.lane(ticket.model)
        lane.progress(ticket, units, now)
        return self._next(now) if lane.waiting and now >= self._looked + LOOK_S else Moves()

    def leave(self, ticket: Ticket, now: float, ending: Ending) -> Moves:
        """One that ran is over; others may begin."""
        lane = self.lane(ticket.model)
        lane.throughput.ended(ticket.units, ticket.size, well=ending is Ending.WELL)
        lane.left(ticket, now, full=ending is Ending.FULL)
        self.active -= 1
        return self._next(now)

    def abandon(self, ticket: Ticket) -> None:
        """One that waits goes away; nothing happens when it does not wait."""
        if self.lane(ticket.model).forget(ticket):
            self.waiting -= 1

    def _next(self, now: float) -> Moves:
        """Start whoever may run, in order; those that would run in vain are refused instead."""
        self._looked = now
        moves = Moves()
        while self.waiting and self.active < self.max_active:
            firsts = [self._first(lane, now, moves) for lane in self._lanes.values() if lane.waiting]
            found = min((each for each in firsts if each is not None), key=_order, default=None)
            if found is None:
                break
            lane = self.lane(found.model)
            self.abandon(found)
            self._start(lane, found, now, moves)
        return moves

    def _first(self, lane: Lane, now: float, moves: Moves) -> Ticket | None:
        """The first of a lane that may run; of those looked at, the ones without hope go."""
        for ticket in lane.first_few():
            if lane.active and now + lane.run_s(ticket, now) > ticket.deadline:
                self.abandon(ticket)
                why = "it could no longer be answered before its deadline"
                moves.refused.append((ticket, self._refusal(lane, ticket, now, "late", why)))
            elif self._may_start(lane, ticket, now):
                return ticket
        return None

    def _may_start(self, lane: Lane, ticket: Ticket, now: float) -> bool:
        if self.active >= self.max_active or not lane.has_room(ticket, now):
            return False
        if self.active < SHARED * self.max_active:
            return True
        asked_for = sum(now - each.seen < REMEMBERED_S for each in self._lanes.values())
        return lane.active < max(1.0, self.max_active / asked_for) if asked_for else True

    def _start(self, lane: Lane, ticket: Ticket, now: float, moves: Moves) -> None:
        self.active += 1
        lane.start(ticket, now)
        moves.started.append(ticket)

    def _push_out(self, lane: Lane, arriving: Ticket, moves: Moves) -> None:
        """Make room for `arriving`: the youngest of the lowest class goes, unless that is `arriving` itself."""
        now = arriving.arrived
        youngest = [ticket for each in self._lanes.values() if (ticket := each.youngest()) is not None]
        victim = max(youngest, key=lambda ticket: (ticket.priority, ticket.arrived), default=arriving)
        if victim.priority <= arriving.priority or victim.order <= arriving.order:
            raise self._refusal(lane, arriving, now, "full", "the queue is full")
        self.abandon(victim)
        why = f"a request of priority {arriving.priority.name.lower()} took its place in the queue"
        refusal = self._refusal(self.lane(victim.model), victim, now, "displaced", why)
        moves.refused.append((victim, refusal))

    def _refusal(self, lane: Lane, ticket: Ticket, now: float, reason: str, why: str) -> Refused:
        """Says when there is likely to be room again: when half of what is before it is through."""
        later = lane.wait_s(ticket, now) / 2
        refused = Refused(
            f"the router is full, {self.active} requests run and {self.waiting} wait: {why}",
            retry_after_s=round(min(max(later, SOONEST_S), LATEST_S), 2),
        )
        refused.reason = reason
        return refused


def _order(ticket: Ticket) -> float:
    return ticket.order
