"""Takes rollouts from step to step, while this registry leads."""

import time
from collections.abc import Callable

from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import REPLICA_STATE_FAILED, LoadReport, ModelSpec

from ..again import again_and_again
from ..events import Events
from ..leadership import Leadership
from ..mirror import Mirror
from ..models import Models
from ..world import History, World, is_current
from .machine import Advance, Limits, Seen, advance
from .trials import Finding, Trials

TICK_S = 0.25


class Rollouts:
    """One task that looks at every rollout four times a second.

    What it writes follows from the record that it replaces: two registries that both believe that they lead cannot take the
    same step twice, and nothing but the record is needed to go on.

    Args:
        models: writes records with compare-and-put.
        mirror: the records.
        leadership: only the leader acts.
        events: each step is one.
        history: of the controller, which counts failures.
        limits: how long sessions may take to their end.
    """

    def __init__(
        self,
        models: Models,
        mirror: Mirror,
        leadership: Leadership,
        events: Events,
        history: Callable[[], History],
        limits: Limits,
    ) -> None:
        self.trials = Trials()
        self._models = models
        self._mirror = mirror
        self._leadership = leadership
        self._events = events
        self._history = history
        self._limits = limits

    def __repr__(self) -> str:
        return f"<Rollouts {self.trials!r}>"

    def take(self, report: LoadReport, now: float) -> None:
        """What a router reports; nodes say nothing of models."""
        if report.models:
            self.trials.take(report.reporter, report.models, now)

    async def run(self) -> None:
        """Go on; does not return."""
        await again_and_again("rollout", self._step, TICK_S, self._mirror.synced)

    async def _step(self) -> None:
        rolling = [spec for spec in self._mirror.models() if rolls_out(spec)]
        routers, now = self._mirror.routers(), time.monotonic()
        self.trials.keep({spec.name for spec in rolling}, routers, now)
        if not rolling or not self._leadership.leads:
            return
        world = self._mirror.world()
        for spec in rolling:
            seen = see(world, spec, self.trials.look(spec, routers, now), self._history())
            step = advance(spec, seen, int(time.time() * 1000), self._limits)
            if step is not None and await self._models.replace(spec, step.spec):
                self._note(step)

    def _note(self, step: Advance) -> None:
        rollout = step.spec.rollout
        numbers = {"share": rollout.share, "step": float(rollout.step)}
        self._events.note(step.kind, step.spec.name, step.reason, **numbers)


def see(world: World, spec: ModelSpec, found: Finding, history: History) -> Seen:
    """What the world shows of a rollout. Pure."""
    candidate = spec.rollout.next
    ready, wanted = _ready(world, candidate), _wanted(world, candidate)
    placed = _placed(world, candidate)
    worst = max(range(len(wanted)), key=lambda stage: history.failures_in(candidate, stage), default=0)
    return Seen(
        deployed_ready=all(_ready(world, spec)) and bool(spec.partitions),
        candidate_ready=bool(ready) and all(ready),
        # What is missing besides what has a node has no room, and comes when what is deployed has gone.
        candidate_full=all(
            have >= min(want, found) for have, want, found in zip(ready, wanted, placed, strict=True)
        ),
        asleep=bool(wanted) and not any(world.wanted(spec, stage) for stage in range(len(spec.partitions))),
        failures=history.failures_in(candidate, worst),
        failure=_failure(world, candidate),
        worse=found.worse,
        requests=found.requests,
        enough=found.enough,
        old=found.old,
        new=found.new,
        blind=found.blind,
    )


def _ready(world: World, spec: ModelSpec) -> list[int]:
    return _count(world, spec, only_ready=True)


def _placed(world: World, spec: ModelSpec) -> list[int]:
    return _count(world, spec, only_ready=False)


def _wanted(world: World, spec: ModelSpec) -> list[int]:
    return [world.wanted(spec, stage) for stage in range(len(spec.partitions))]


def _count(world: World, spec: ModelSpec, *, only_ready: bool) -> list[int]:
    counts = [0] * len(spec.partitions)
    for held in world.assignments.values():
        if held.model == spec.name and is_current(spec, held) and (not only_ready or world.ready(held)):
            counts[held.stage] += 1
    return counts


def _failure(world: World, spec: ModelSpec) -> str:
    for record in world.replicas.values():
        if (
            record.model == spec.name
            and record.revision == spec.revision
            and record.state == REPLICA_STATE_FAILED
        ):
            return f"stage {record.stage} on {record.node_id}: {record.detail or 'it did not say why'}"
    return "its node did not say why"
