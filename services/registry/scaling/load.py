"""What a decision is made from, and what it is. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .limits import Limits


@dataclass(frozen=True, slots=True)
class StageLoad:
    """One stage of a model, over the last seconds.

    Attributes:
        ready: replicas that serve.
        queue_ms: mean milliseconds that a step waited for its pass.
        busy: mean share of the time in which its replicas computed, 0..1.
        kv: mean share of its replicas' KV memory in use, 0..1.
        known: ready replicas that were heard of lately; `busy` and `kv` are theirs.
    """

    ready: int
    queue_ms: float = 0.0
    busy: float = 0.0
    kv: float = 0.0
    known: int | None = None

    @property
    def sure(self) -> bool:
        """Whether every ready replica was heard of."""
        return self.known is None or self.known >= self.ready


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model.

    Attributes:
        wanted: replicas of each stage that were decided last; all 0: it sleeps.
        stages: their loads.
        active: requests that run.
        waiting: requests that wait for their turn, or for the model to wake.
        requested_at: when a request last came or ran, seconds.
        sure: whether every router was heard of; without it nothing shrinks.
        awake_because: why it should be awake though nobody asks; empty: no reason.
        idle_s: seconds without a request before it sleeps; None: the limits'.
    """

    model: str
    limits: Limits
    wanted: Sequence[int]
    stages: Sequence[StageLoad]
    active: int = 0
    waiting: int = 0
    requested_at: float = float("-inf")
    sure: bool = True
    awake_because: str = ""
    idle_s: float | None = None

    @property
    def asleep(self) -> bool:
        """Whether it has no replicas."""
        return not any(self.wanted)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be from now on, and why.

    Attributes:
        kind: "scale.up", "scale.down", "scale.sleep", "scale.wake", or "scale.limit" (nothing changes: it is at its most).
        replicas: of each stage.
        expected: what it was decided from.
    """

    kind: str
    model: str
    replicas: tuple[int, ...]
    expected: tuple[int, ...]
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
