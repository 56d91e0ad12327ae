"""What one model may have, and what it aims at. Pure."""

import math
from dataclasses import dataclass

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import Scaling

MAX_REPLICAS = 1000
MAX_QUEUE_MS = 600_000
MAX_IDLE_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model aims at that says nothing itself."""

    queue_ms: float = 20.0
    kv: float = 0.8
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model, each for one stage.

    Attributes:
        least: replicas while it is awake and busy or not; 0 lets it sleep, and is 1 while it is awake.
        most: replicas at most.
        queue_ms: milliseconds that a step may wait for its pass.
        kv: share of KV memory that may be in use, 0..1.
        idle_s: seconds without a request before it sleeps.
        own_idle: whether the user named `idle_s`.
    """

    least: int = 1
    most: int = MAX_REPLICAS
    queue_ms: float = 20.0
    kv: float = 0.8
    idle_s: float = 300.0
    own_idle: bool = False

    @property
    def awake(self) -> int:
        """Replicas of each stage that is awake, at least."""
        return max(1, self.least)


def limits_of(scaling: Scaling, defaults: Defaults) -> Limits:
    """The limits of a model; what it leaves open comes from `defaults`."""
    least = scaling.min_replicas
    return Limits(
        least=least,
        most=max(scaling.max_replicas or MAX_REPLICAS, least, 1),
        queue_ms=scaling.target_queue_ms or defaults.queue_ms,
        kv=scaling.target_kv or defaults.kv,
        idle_s=scaling.idle_s or defaults.idle_s,
        own_idle=scaling.idle_s > 0,
    )


def check_scaling(scaling: Scaling) -> None:
    """Raise `InvalidArgument`, naming the field, for limits that no mesh can keep."""
    if scaling.min_replicas > MAX_REPLICAS:
        raise _bad("min_replicas", f"{scaling.min_replicas} is not within 0..{MAX_REPLICAS}")
    if scaling.max_replicas > MAX_REPLICAS:
        raise _bad(
            "max_replicas", f"{scaling.max_replicas} is not within 0..{MAX_REPLICAS} (0: as many as fit)"
        )
    if scaling.max_replicas and scaling.max_replicas < scaling.min_replicas:
        raise _bad(
            "max_replicas", f"{scaling.max_replicas} is less than min_replicas, {scaling.min_replicas}"
        )
    if scaling.target_queue_ms > MAX_QUEUE_MS:
        raise _bad(
            "target_queue_ms", f"{scaling.target_queue_ms} is not within 0..{MAX_QUEUE_MS} (0: default)"
        )
    if not math.isfinite(scaling.target_kv) or not 0 <= scaling.target_kv <= 1:
        raise _bad("target_kv", f"{scaling.target_kv:g} is not within 0..1 (0: default)")
    if scaling.idle_s > MAX_IDLE_S:
        raise _bad("idle_s", f"{scaling.idle_s} is not within 0..{MAX_IDLE_S} (0: default)")


def _bad(field: str, why: str) -> InvalidArgument:
    name = f"scaling.{field}"
    return InvalidArgument(f"{name}: {why}", field=name)
