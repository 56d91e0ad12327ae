"""Which stage limits a model, how hard it is pressed, and what one replica less would do. Pure.

Waiting shows where a pipeline is full, but not only there: a stage whose next one takes no more frames holds its own back.
Therefore waiting says *that* there is too little, and computing time says *where*: the stage whose replicas compute most of the
time. What fewer replicas would wait is Kingman's approximation (J. F. C. Kingman, "The single server queue in heavy traffic",
1961): the wait grows as busy / (1 - busy), the rest stays as it is.
"""

import math
from dataclasses import dataclass

from .load import ModelLoad, StageLoad

# Stages that are as busy as that, but for this much, are told apart by how long steps wait there.
_ALIKE = 0.1
# Requests that wait for their turn say something about the stages only when these are that busy.
_FULL = 0.7
# What growing aims at, as a part of the target: exactly on it would be above it half of the time.
_AIM = 0.9


@dataclass(frozen=True, slots=True)
class Pressure:
    """A stage that limits the model: `ratio` is what there is over what should be, above 1 when there is too little."""

    stage: int
    ratio: float
    why: str


def pressure_of(load: ModelLoad) -> Pressure:
    """The stage that limits the model most, by waiting or by KV memory."""
    return max(_by_waiting(load), _by_memory(load), key=lambda found: found.ratio)


def busiest(stages: tuple[StageLoad, ...] | list[StageLoad]) -> int:
    """The stage whose replicas compute most of the time; of those about as busy, where steps wait longest."""
    most = max(each.busy for each in stages)
    alike = [nth for nth, each in enumerate(stages) if each.busy >= most - _ALIKE]
    return max(alike, key=lambda nth: (stages[nth].queue_ms, stages[nth].busy, -nth))


def _by_waiting(load: ModelLoad) -> Pressure:
    stage = busiest(list(load.stages))
    own = load.stages[stage]
    longest = max(load.stages, key=lambda each: each.queue_ms).queue_ms
    ratio = longest / load.limits.queue_ms
    why = f"steps wait {longest:.1f} ms, {load.limits.queue_ms:g} is the target"
    # Stages that take turns, one micro-batch at a time, are full together when one of them always computes.
    if load.waiting and sum(each.busy for each in load.stages) >= _FULL:
        demand = 1 + load.waiting / max(load.active, 1)
        if demand > ratio:
            ratio, why = demand, f"{load.waiting} requests wait beside {load.active} that run"
    return Pressure(stage, ratio, f"{why}; its replicas compute {own.busy:.0%} of the time")


def _by_memory(load: ModelLoad) -> Pressure:
    stage = max(range(len(load.stages)), key=lambda nth: load.stages[nth].kv)
    kv = load.stages[stage].kv
    return Pressure(
        stage, kv / load.limits.kv, f"{kv:.0%} of its KV memory is in use, {load.limits.kv:.0%} is the target"
    )


def grown(load: ModelLoad, found: Pressure) -> int:
    """Replicas that the pressed stage should have: as few as are predicted to do, at most twice as many as now, and not past
    the next bottleneck.
    """
    now, stage = load.wanted[found.stage], load.stages[found.stage]
    more = next(
        (then for then in range(now + 1, 2 * now) if _would_do(load, after(stage, now, then))), 2 * now
    )
    others = [each.busy for nth, each in enumerate(load.stages) if nth != found.stage]
    next_busy = max(others, default=0.0)
    if next_busy > 0 and stage.busy > next_busy:
        # With that many it would be as busy as the next one is now: more would only move the bottleneck.
        more = min(more, max(now + 1, math.ceil(now * stage.busy / next_busy)))
    return min(more, load.limits.most)


def _would_do(load: ModelLoad, stage: StageLoad) -> bool:
    waiting = 1 + load.waiting / max(load.active, 1)
    return (
        stage.queue_ms <= _AIM * load.limits.queue_ms
        and stage.kv <= _AIM * load.limits.kv
        and stage.busy * waiting <= _FULL
    )


def after(stage: StageLoad, now: int, then: int) -> StageLoad:
    """What the stage's load would be with `then` replicas instead of `now`."""
    scale = now / then
    busy = stage.busy * scale
    if busy >= 1:
        queue_ms = math.inf
    elif stage.busy > 0:
        queue_ms = stage.queue_ms * (busy / (1 - busy)) / (stage.busy / max(1 - stage.busy, 1e-3))
    else:
        queue_ms = stage.queue_ms * scale
    return StageLoad(then, queue_ms, busy, stage.kv * scale)
