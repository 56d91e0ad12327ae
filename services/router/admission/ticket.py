"""One request at the door. Pure."""

from dataclasses import dataclass

from .priority import Priority

AGING_S = 10.0
"""A class goes before the next one by that much: whoever has waited longer than that is not overtaken by it any more."""


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
    # Whose it is, and what of the places that tenant, and that model, may have beside others.
    tenant: str = ""
    weight: float = 1.0
    model_weight: float = 1.0
    # What its tenant was charged with when it began.
    charged: float = 0.0

    @property
    def order(self) -> float:
        """Whoever has the lower one goes first."""
        return self.arrived + self.priority * AGING_S

    @property
    def budget_s(self) -> float:
        """The time that it had when it came."""
        return self.deadline - self.arrived
