"""Balancing policies: pure, one file each. A policy returns a choice; somebody else acts on it."""

from collections.abc import Callable

from .candidate import Candidate, Policy
from .least_loaded import LeastLoaded
from .p2c_ewma import P2cEwma
from .round_robin import RoundRobin

POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "p2c_ewma": P2cEwma,
}

__all__ = ["POLICIES", "Candidate", "LeastLoaded", "P2cEwma", "Policy", "RoundRobin"]
