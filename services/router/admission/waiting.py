"""All that wait, of every model: how many, and who goes when there is no room for one more. Pure."""

from collections import OrderedDict

from .priority import Priority
from .ticket import Ticket


class _Line:
    """Of one class and tenant, in the order in which they came."""

    __slots__ = ("tickets", "weight")

    def __init__(self) -> None:
        self.weight = 1.0
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()

    def load(self, more: int = 0) -> float:
        """How many wait, for its weight."""
        return (len(self.tickets) + more) / self.weight


class Waiting:
    """Requests that wait, by class and tenant. All is O(1), but for `victim`: O(tenants that wait in its class)."""

    def __init__(self) -> None:
        self._of: dict[Priority, OrderedDict[Ticket, None]] = {each: OrderedDict() for each in Priority}
        self._lines: dict[Priority, dict[str, _Line]] = {each: {} for each in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def of(self, priority: Priority) -> int:
        """How many of a class wait."""
        return len(self._of[priority])

    def add(self, ticket: Ticket) -> None:
        """It waits."""
        self._of[ticket.priority][ticket] = None
        line = self._lines[ticket.priority].setdefault(ticket.tenant, _Line())
        line.weight = ticket.weight
        line.tickets[ticket] = None

    def remove(self, ticket: Ticket) -> None:
        """It waits no longer."""
        del self._of[ticket.priority][ticket]
        lines = self._lines[ticket.priority]
        del lines[ticket.tenant].tickets[ticket]
        if not lines[ticket.tenant].tickets:
            del lines[ticket.tenant]

    def victim(self, arriving: Ticket) -> Ticket | None:
        """Who makes room for `arriving`, or None: it is refused.

        Of the lowest class that waits, the youngest request of the tenant with most for its weight. That goes for one of a
        higher class, unless it has waited for so long that it goes first, and for one of the same class whose tenant would still
        have less: nobody fills the queue alone.
        """
        lowest = next((each for each in reversed(Priority) if self._of[each]), None)
        if lowest is None or lowest < arriving.priority:
            return None
        lines = self._lines[lowest]
        most = max(lines.values(), key=_Line.load)
        if lowest > arriving.priority:
            youngest = (next(reversed(most.tickets)), next(reversed(self._of[lowest])))
            return next((each for each in youngest if each.order > arriving.order), None)
        own = lines.get(arriving.tenant)
        load = own.load(1) if own is not None else 1 / arriving.weight
        return next(reversed(most.tickets)) if most is not own and most.load(-1) >= load else None
