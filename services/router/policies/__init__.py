"""Balancing policies: pure, one file each. A policy returns a choice; somebody else acts on it."""

from collections.abc import Callable

from .candidate import NOTHING_ASKED, Ask, Candidate, Policy
from .least_loaded import LeastLoaded
from .p2c_ewma import P2cEwma
from .prefix_affinity import PrefixAffinity
from .round_robin import RoundRobin
from .session_affinity import SessionAffinity
from .weighted import Weighted

BY_PREFIX = "prefix_affinity"
"""The one that is told what replicas hold of a prompt."""

POLICIES: dict[str, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "least_loaded": LeastLoaded,
    "p2c_ewma": P2cEwma,
    "session_affinity": SessionAffinity,
    BY_PREFIX: PrefixAffinity,
}

__all__ = [
    "BY_PREFIX",
    "NOTHING_ASKED",
    "POLICIES",
    "Ask",
    "Candidate",
    "LeastLoaded",
    "P2cEwma",
    "Policy",
    "PrefixAffinity",
    "RoundRobin",
    "SessionAffinity",
    "Weighted",
]
