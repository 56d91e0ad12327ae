"""The autoscaler: per model, the stage that limits it grows, stages with too much shrink, an idle model sleeps. Pure.

Hysteresis is in three places: a stage grows only while it was pressed for a few seconds and shrinks only after a longer while;
it shrinks only to where, by prediction, it would still be well below its targets; and a stage that had to grow again soon after it
shrank waits twice as long the next time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .bottleneck import Pressure, after, grown, pressure_of
from .load import Decision, ModelLoad

# What is left of the targets may be used after shrinking: the rest keeps it from growing again at once.
_QUEUE_MARGIN = 0.5
_KV_MARGIN = 0.75
_BUSY_MARGIN = 0.6
# A stage that grows within so many times the patience for shrinking should not have shrunk.
_REGRET = 4.0
_MOST_REGRETS = 4


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: how long something must be so before it is acted on, and how long to look before the next change."""

    up_after_s: float = 3.0
    up_cooldown_s: float = 10.0
    down_after_s: float = 60.0
    down_cooldown_s: float = 30.0


@dataclass(slots=True)
class _Stage:
    spare_since: float | None = None
    shrunk_at: float = float("-inf")
    regrets: int = 0


@dataclass(slots=True)
class _Model:
    seen_at: float
    wanted: tuple[int, ...] = ()
    pressed_since: float | None = None
    changed_at: float = float("-inf")
    limited_at: float = float("-inf")
    stages: list[_Stage] = field(default_factory=list)


class Autoscaler:
    """Decides for all models; remembers since when something is so, and when a model's replicas last changed."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = Patience() if patience is None else patience
        self._models: dict[str, _Model] = {}

    def __repr__(self) -> str:
        return f"Autoscaler(models={len(self._models)})"

    def decide(self, loads: Sequence[ModelLoad], now: float) -> list[Decision]:
        """What is to change now; at most one decision for each model. Models not among `loads` are forgotten."""
        known, self._models = self._models, {}
        decisions: list[Decision] = []
        for load in loads:
            memory = known.get(load.model) or _Model(now)
            self._models[load.model] = memory
            self._note_change(memory, load, now)
            found = self._one(memory, load, now)
            if found is not None:
                decisions.append(found)
                if found.kind == "scale.sleep":
                    # Woken before the next look it would seem never to have slept, and be sent to sleep under a request.
                    memory.wanted = found.replicas
        return decisions

    def _note_change(self, memory: _Model, load: ModelLoad, now: float) -> None:
        """Replicas changed, by a decision of ours or of somebody else: look anew."""
        wanted = tuple(load.wanted)
        if memory.wanted == wanted:
            return
        before, memory.wanted = memory.wanted, wanted
        if len(memory.stages) != len(wanted):
            memory.stages = [_Stage() for _ in wanted]
        elif before and any(before) and any(wanted):
            for stage, was, now_wanted in zip(memory.stages, before, wanted, strict=True):
                self._note_stage(stage, was, now_wanted, now)
        if before and not any(before):
            memory.seen_at = now  # it was woken: that counts as asked for
        if before:
            memory.changed_at = now
        memory.pressed_since = None
        for stage in memory.stages:
            stage.spare_since = None

    def _note_stage(self, stage: _Stage, was: int, wanted: int, now: float) -> None:
        if wanted < was:
            stage.shrunk_at = now
        elif wanted > was:
            soon = now - stage.shrunk_at < _REGRET * self._patience.down_after_s * 2.0**stage.regrets
            stage.regrets = min(stage.regrets + 1, _MOST_REGRETS) if soon else 0

    def _one(self, memory: _Model, load: ModelLoad, now: float) -> Decision | None:
        if load.asleep:
            return _wake(load)
        bounded = _within_limits(load)
        if bounded is not None:
            return bounded
        return self._sleep(memory, load, now) or self._up(memory, load, now) or self._down(memory, load, now)

    def _sleep(self, memory: _Model, load: ModelLoad, now: float) -> Decision | None:
        if load.limits.least or load.awake_because or load.active or load.waiting or not _all_sure(load):
            return None
        idle_s = now - max(load.requested_at, memory.seen_at)
        limit_s = load.limits.idle_s if load.idle_s is None else load.idle_s
        if idle_s < limit_s:
            return None
        reason = f"no request for {idle_s:.0f} s, {limit_s:.0f} is the limit"
        return _decision("scale.sleep", load, [0] * len(load.wanted), reason, idle_s=idle_s, limit_s=limit_s)

    def _up(self, memory: _Model, load: ModelLoad, now: float) -> Decision | None:
        found = pressure_of(load)
        if found.ratio <= 1 or not all(each.ready for each in load.stages):
            memory.pressed_since = None
            return None
        if memory.pressed_since is None:
            memory.pressed_since = now
        landed = load.stages[found.stage].ready >= load.wanted[found.stage]
        patient = now - memory.pressed_since < self._patience.up_after_s
        if patient or not landed or now - memory.changed_at < self._patience.up_cooldown_s:
            return None
        return self._grow(memory, load, found, now)

    def _grow(self, memory: _Model, load: ModelLoad, found: Pressure, now: float) -> Decision | None:
        own, had = load.stages[found.stage], load.wanted[found.stage]
        numbers = {
            "stage": float(found.stage),
            "queue_ms": own.queue_ms,
            "busy": own.busy,
            "kv": own.kv,
            "from": float(had),
        }
        wanted = grown(load, found)
        if wanted <= had:
            if now - memory.limited_at < self._patience.down_after_s:
                return None  # it was said
            memory.limited_at = now
            reason = f"stage {found.stage} stays at {had} replicas, the most that it may have: {found.why}"
            return _decision("scale.limit", load, load.wanted, reason, **numbers)
        replicas = list(load.wanted)
        replicas[found.stage] = wanted
        reason = f"stage {found.stage} from {had} to {wanted} replicas: {found.why}"
        return _decision("scale.up", load, replicas, reason, to=float(wanted), **numbers)

    def _down(self, memory: _Model, load: ModelLoad, now: float) -> Decision | None:
        """The stage that has had the most to spare for long enough."""
        best: Decision | None = None
        for nth, stage in enumerate(memory.stages):
            fewer = _fewer(load, nth)
            if fewer is None:
                stage.spare_since = None
                continue
            if stage.spare_since is None:
                stage.spare_since = now
            hold_s = self._patience.down_after_s * 2.0**stage.regrets
            early = (
                now - stage.spare_since < hold_s or now - memory.changed_at < self._patience.down_cooldown_s
            )
            if early or best is not None:
                continue
            own, had = load.stages[nth], load.wanted[nth]
            replicas = list(load.wanted)
            replicas[nth] = fewer
            reason = (
                f"stage {nth} from {had} to {fewer} replicas: for {now - stage.spare_since:.0f} s steps waited "
                f"{own.queue_ms:.1f} ms, replicas computed {own.busy:.0%} of the time and held {own.kv:.0%} of their KV memory"
            )
            best = _decision(
                "scale.down", load, replicas, reason,
                stage=float(nth), queue_ms=own.queue_ms, busy=own.busy, kv=own.kv, to=float(fewer), **{"from": float(had)},
            )  # fmt: skip
        return best


def _fewer(load: ModelLoad, nth: int) -> int | None:
    """How few replicas the stage would do with, half of them at least; None when it needs all."""
    had, stage = load.wanted[nth], load.stages[nth]
    if had <= load.limits.awake or stage.ready < had or not _all_sure(load) or load.waiting:
        return None
    for then in range(max(load.limits.awake, (had + 1) // 2), had):
        would = after(stage, had, then)
        if (
            would.queue_ms <= _QUEUE_MARGIN * load.limits.queue_ms
            and would.kv <= _KV_MARGIN * load.limits.kv
            and would.busy <= _BUSY_MARGIN
        ):
            return then
    return None


def _within_limits(load: ModelLoad) -> Decision | None:
    """The user changed the limits: that holds at once."""
    replicas = [min(max(each, load.limits.awake), load.limits.most) for each in load.wanted]
    if replicas == list(load.wanted):
        return None
    kind = "scale.up" if sum(replicas) > sum(load.wanted) else "scale.down"
    reason = f"the limits are {load.limits.least} to {load.limits.most} replicas of each stage"
    return _decision(kind, load, replicas, reason, least=load.limits.least, most=load.limits.most)


def _wake(load: ModelLoad) -> Decision | None:
    if load.limits.least:
        reason = f"it may not sleep: the least is {load.limits.least}"
    elif load.waiting or load.active:
        reason = f"{load.waiting + load.active} requests came while it slept"
    elif load.awake_because:
        reason = load.awake_because
    else:
        return None
    # All stages at once: a route needs each of them.
    return _decision("scale.wake", load, [load.limits.awake] * len(load.wanted), reason, waiting=load.waiting)


def _all_sure(load: ModelLoad) -> bool:
    return load.sure and all(each.sure for each in load.stages)


def _decision(kind: str, load: ModelLoad, replicas: Sequence[int], reason: str, **numbers: float) -> Decision:
    return Decision(kind, load.model, tuple(replicas), tuple(load.wanted), reason, numbers)
