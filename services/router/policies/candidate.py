"""What a policy knows of a replica, and what a policy is."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that might be chosen.

    `active` counts this router's sessions on it, `queue_depth` the steps that it said were waiting, `step_ms` its
    peak-sensitive moving average of one pass (0 while unknown), and `confidence` how far that still holds: 1 when
    just reported, towards 0 as time passes without a word.
    """

    replica_id: str
    ready: bool = True
    active: int = 0
    queue_depth: int = 0
    step_ms: float = 0.0
    confidence: float = 1.0


class Policy(Protocol):
    """Chooses one replica of one stage. An instance belongs to one stage of one model and may keep state."""

    def choose(self, candidates: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return one of the ready candidates; raise `LookupError` when there is none."""
        ...


def only_ready(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The ready ones, in order; raise `LookupError` when there is none."""
    ready = [candidate for candidate in candidates if candidate.ready]
    if not ready:
        raise LookupError("no ready replica")
    return ready
