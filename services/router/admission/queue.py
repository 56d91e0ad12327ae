"""Who runs, who waits, and who is refused early. Pure; time comes in as an argument.

One more request makes all of a model's requests slower. So a request runs only while what the model gets done says that
it will end in time; till then it waits, by priority, and it is refused as soon as it cannot be answered before its
deadline: what is computed for nothing is what makes a full system answer nobody.

Who begins next is decided by class first (higher ones, and those that have waited for long), then by model, then by tenant: among
the models, and the tenants of one, that could begin it is the one that was given least for its weight (`fair`).
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from stagemesh.errors import ResourceExhausted

from .fair import Clock
from .lane import CAUTION, REMEMBERED_S, Lane
from .priority import Priority
from .ticket import Ticket
from .waiting import Waiting

__all__ = ["Admission", "Ending", "Moves", "Refused", "Ticket"]

SHARED = 7 / 8
"""Of all places, those that a model may take beyond its share by weight while others are asked for, too."""
BEGUN = 2
"""Answers that go on here after their router was lost run at once, up to so many times the places."""
LOOK_S = 0.05
"""Between two looks at a model's requests that wait, when nothing but progress is the reason."""
LOOK_AT_ALL_S = 1.0
"""Between two looks at those of all models, while there are places enough: one's end makes no room for another's then."""
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


NO_MOVES: Final = Moves()
"""Nobody begins and nobody is refused, as nearly always; not to be written to."""


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
        self._lanes: dict[str, Lane] = {}
        # Lanes in which somebody waits.
        self._backlogged: dict[str, Lane] = {}
        self._waiting = Waiting()
        self._clock = Clock()
        # Weights of the models that were asked for lately, whoever was asked for last at the end, and their sum.
        self._asked_for: OrderedDict[str, float] = OrderedDict()
        self._weights = 0.0
        self._asked_last: str | None = None
        self._looked = float("-inf")

    def __repr__(self) -> str:
        return f"Admission(active={self.active}/{self.max_active}, waiting={self.waiting}/{self.max_waiting})"

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def lane(self, model: str, now: float = 0.0) -> Lane:
        """What is known of a model's requests."""
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane(self.max_active, now)
        return lane

    def waiting_of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return self._waiting.of(priority)

    def arrive(self, ticket: Ticket) -> Moves:
        """A request comes: it is among those started, or it waits; one of a lower class may be refused for it.

        Raises:
            Refused: it is refused; `retry_after_s` says when to try again.
        """
        now, moves = ticket.arrived, Moves()
        lane = self._lanes.get(ticket.model) or self.lane(ticket.model, now)
        self._note_asked(lane, ticket)
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
        if not lane.waiting:
            lane.wake(self._clock)
            self._backlogged[ticket.model] = lane
        lane.wait(ticket)
        self._waiting.add(ticket)
        return moves

    def progress(self, ticket: Ticket, units: float, now: float) -> Moves:
        """So many units of a request that runs are done; more may begin where the model turns out to be faster."""
        lane = self._lanes[ticket.model]
        lane.progress(ticket, units, now)
        if not lane.waiting or now < lane.looked + LOOK_S:
            return NO_MOVES
        return self._next(now, {ticket.model: lane})

    def leave(self, ticket: Ticket, now: float, ending: Ending) -> Moves:
        """One that ran is over; others may begin."""
        lane = self._lanes[ticket.model]
        lane.throughput.ended(ticket.units, ticket.size, well=ending is Ending.WELL)
        lane.left(ticket, now, full=ending is Ending.FULL)
        if ticket.units != ticket.charged:
            lane.settle(ticket.units - ticket.charged)
        scarce = self.active >= SHARED * self.max_active
        self.active -= 1
        if scarce or now >= self._looked + LOOK_AT_ALL_S:
            self._looked = now
            return self._next(now, dict(self._backlogged))
        return self._next(now, {ticket.model: lane}) if lane.waiting else NO_MOVES

    def abandon(self, ticket: Ticket) -> None:
        """One that waits goes away; nothing happens when it does not wait."""
        lane = self.lane(ticket.model)
        if lane.forget(ticket):
            self._waiting.remove(ticket)
            if not lane.waiting:
                self._backlogged.pop(ticket.model, None)

    def _next(self, now: float, lanes: dict[str, Lane]) -> Moves:
        """Start whoever of these lanes may run, in order; those that would run in vain are refused instead."""
        if not lanes:
            return NO_MOVES
        moves = Moves()
        firsts: dict[str, Ticket] = {}
        while self.active < self.max_active:
            for model, lane in list(lanes.items()):
                if model not in firsts:
                    found = self._first(lane, now, moves)
                    if found is None:
                        del lanes[model]
                    else:
                        firsts[model] = found
            if not firsts:
                break
            # Classes take turns by who has waited longest; within a class it is the model that was given least.
            turn = min(firsts.values(), key=_order).priority
            model = min(
                (model for model, ticket in firsts.items() if ticket.priority is turn),
                key=lambda model: (lanes[model].tag, firsts[model].order),
            )
            ticket = firsts.pop(model)
            if moves.started and not self._may_start(lanes[model], ticket, now):
                continue  # who went before it has taken the places that its model may have
            self.abandon(ticket)
            self._start(lanes[model], ticket, now, moves)
        return moves

    def _first(self, lane: Lane, now: float, moves: Moves) -> Ticket | None:
        """The first of a lane that may run; of those looked at, the ones without hope go."""
        lane.looked = now
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
        self._forget_asked(now)
        if len(self._asked_for) < 2:
            return True
        return lane.active < max(1.0, self.max_active * lane.weight / self._weights)

    def _note_asked(self, lane: Lane, ticket: Ticket) -> None:
        """A model is asked for, with the weight that it has now."""
        if ticket.model == self._asked_last and ticket.model_weight == lane.weight:
            return
        self._asked_last = ticket.model
        lane.weight = ticket.model_weight
        self._weights += lane.weight - self._asked_for.pop(ticket.model, 0.0)
        self._asked_for[ticket.model] = lane.weight
        self._forget_asked(ticket.arrived)

    def _forget_asked(self, now: float) -> None:
        while self._asked_for:
            model = next(iter(self._asked_for))
            if now - self._lanes[model].seen < REMEMBERED_S or len(self._asked_for) == 1:
                return
            self._weights -= self._asked_for.pop(model)

    def _start(self, lane: Lane, ticket: Ticket, now: float, moves: Moves) -> None:
        self.active += 1
        lane.start(ticket, now)
        if lane.waiting:
            lane.charge(self._clock, ticket.charged)
        else:
            lane.begin(self._clock, ticket.charged)
        moves.started.append(ticket)

    def _push_out(self, lane: Lane, arriving: Ticket, moves: Moves) -> None:
        """Make room for `arriving`, or refuse it; see `Waiting.victim`."""
        victim = self._waiting.victim(arriving)
        if victim is None:
            raise self._refusal(lane, arriving, arriving.arrived, "full", "the queue is full")
        self.abandon(victim)
        if victim.priority > arriving.priority:
            why = f"a request of priority {arriving.priority.name.lower()} took its place in the queue"
        else:
            why = "another tenant, which has fewer in the queue for its weight, took its place"
        refusal = self._refusal(self.lane(victim.model), victim, arriving.arrived, "displaced", why)
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
