"""Moves the cuts of models where that pays: asked for, or by itself where the model says so."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import FailedPrecondition, NotFound, StagemeshError
from stagemesh.revisions import checkpoint_revision, rolls_out
from stagemesh.v1.registry_pb2 import LoadReport, ModelSpec, Partition, RecutResponse

from ..again import again_and_again
from ..desired import partitions_of, spec_revision
from ..events import Events
from ..leadership import Leadership
from ..mirror import Mirror
from ..models import Models
from ..planned import placed
from .begin import Way, begun
from .drift import Moves, Patience, Weighed, weigh

log = logging.getLogger(__name__)

LOOK_S = 15.0
_FRESH_S = 30.0
_KEPT_SHARE = 0.8
# What moves by itself shows with a quarter of the sessions that it is no slower.
_CAUTIOUS = Way((0.25, 1.0), 15, "recut")
_AT_ONCE = Way((1.0,), 0, "recut")

Inspect = Callable[[ModelSpec], Awaitable[checkpoints.Checkpoint]]


class _Pace:
    """Of one replica: milliseconds of a pass and share of the time that it computed, with what was before fading."""

    __slots__ = ("at", "busy", "pass_ms")

    def __init__(self) -> None:
        self.pass_ms = self.busy = self.at = 0.0


class Recuts:
    """What nodes report of their passes, and what follows from it."""

    def __init__(
        self,
        models: Models,
        mirror: Mirror,
        leadership: Leadership,
        events: Events,
        patience: Patience,
        inspect: Inspect | None = None,
    ) -> None:
        self._models = models
        self._mirror = mirror
        self._leadership = leadership
        self._events = events
        self._patience = patience
        self._inspect = inspect or _inspect
        self._moves = Moves(patience)
        self._paces: dict[str, _Pace] = {}

    def __repr__(self) -> str:
        return f"<Recuts of {len(self._paces)} replicas>"

    def take(self, report: LoadReport, now: float) -> None:
        """What a node reports of its replicas."""
        for one in report.replicas:
            pace = self._paces.setdefault(one.replica_id, _Pace())
            share = _KEPT_SHARE if pace.at else 0.0
            pace.busy = share * pace.busy + (1 - share) * one.busy
            if one.pass_ms > 0:
                share = share if pace.pass_ms else 0.0
                pace.pass_ms = share * pace.pass_ms + (1 - share) * one.pass_ms
            pace.at = now

    def busy_for_others(self, name: str, now: float) -> dict[str, float]:
        """By node, which part of the time it computes for other models than `name`.

        Nodes report to the leader: of another registry it is empty, and every node counts as it is alone.
        """
        busy: dict[str, float] = {}
        assignments = self._mirror.world().assignments
        for replica_id, pace in self._paces.items():
            held = assignments.get(replica_id)
            if held is not None and held.model != name and now - pace.at < _FRESH_S:
                busy[held.node_id] = min(1.0, busy.get(held.node_id, 0.0) + pace.busy)
        return busy

    async def run(self) -> None:
        """Look every quarter of a minute; does not return."""
        await again_and_again("recut", self._look, LOOK_S, self._mirror.synced)

    async def recut(self, name: str, *, dry_run: bool, force: bool) -> RecutResponse:
        """Weigh a model's cuts, and move them where that pays, or in any case with `force`.

        Raises:
            NotFound: no such model.
            FailedPrecondition: a rollout is under way, the model does not serve, or there is no plan.
        """
        spec = next((one for one in self._mirror.models() if one.name == name), None)
        if spec is None:
            raise NotFound(f"no model {name!r} is deployed", field="name")
        weighed, candidate = await self._weigh(spec)
        move = not dry_run and (weighed.pays or force) and candidate.revision != spec.revision
        response = RecutResponse(
            model=spec,
            reason=weighed.reason,
            plan=candidate.plan,
            present_tokens_per_s=weighed.present_tokens_per_s,
            partitions=candidate.partitions,
        )
        if move:
            response.begun = await self._begin(spec, candidate, weighed, _AT_ONCE)
            if not response.begun:
                raise FailedPrecondition(f"model {name!r} was changed by others meanwhile", field="name")
        return response

    async def _look(self) -> None:
        now = time.monotonic()
        world = self._mirror.world()
        for gone in self._paces.keys() - world.assignments.keys():
            del self._paces[gone]
        if not self._leadership.leads:
            return
        for spec in world.models.values():
            if not spec.plan.auto_recut or rolls_out(spec) or not world.serves(spec):
                continue
            now_ms = int(time.time() * 1000)
            if self._moves.cools_down(spec, now_ms):
                continue
            try:
                weighed, candidate = await self._weigh(spec)
            except StagemeshError as error:
                log.info("recut.not_weighed model=%s: %s", spec.name, error)
                self._moves.due(spec, None, now, now_ms)
                continue
            if self._moves.due(spec, weighed, now, now_ms):
                await self._begin(spec, candidate, weighed, _CAUTIOUS)

    async def _weigh(self, spec: ModelSpec) -> tuple[Weighed, ModelSpec]:
        world = self._mirror.world()
        if rolls_out(spec):
            raise FailedPrecondition(f"model {spec.name!r}: a rollout is under way", field="name")
        if not world.serves(spec):
            raise FailedPrecondition(f"model {spec.name!r} does not serve now", field="name")
        found = await self._inspect(spec)
        if found.revision != checkpoint_revision(spec.revision):
            raise FailedPrecondition(f"model {spec.name!r}: its checkpoint has changed since", field="name")
        now = time.monotonic()
        own = {name: pace for name, pace in self._paces.items() if name in world.assignments}
        fresh = {name: pace for name, pace in own.items() if now - pace.at < _FRESH_S}
        busy = [pace.busy for name, pace in fresh.items() if world.assignments[name].model == spec.name]
        weighed = await asyncio.to_thread(
            weigh,
            spec,
            found,
            world,
            {name: pace.pass_ms for name, pace in fresh.items()},
            max(busy, default=1.0),
            self._patience,
        )
        return weighed, await asyncio.to_thread(_candidate, spec, found, weighed)

    async def _begin(self, spec: ModelSpec, candidate: ModelSpec, weighed: Weighed, way: Way) -> bool:
        after = begun(spec, candidate, way, weighed.reason, int(time.time() * 1000))
        if not await self._models.replace(spec, after):
            return False
        self._events.note(
            "recut",
            spec.name,
            weighed.reason,
            gain=weighed.gain,
            tokens_per_s=weighed.plan.tokens_per_s,
            present_tokens_per_s=weighed.present_tokens_per_s,
        )
        return True


def _candidate(spec: ModelSpec, found: checkpoints.Checkpoint, weighed: Weighed) -> ModelSpec:
    """The same weights in the plan's partitions; pure."""
    where = placed(weighed.plan, spec.plan)
    where.record.why.insert(0, weighed.reason)
    where.record.objective = where.record.objective or "throughput"
    where.record.unix_ms = int(time.time() * 1000)
    candidate = ModelSpec()
    candidate.CopyFrom(spec)
    candidate.ClearField("rollout")
    partitions: list[Partition] = partitions_of(found, weighed.cuts)
    del candidate.partitions[:]
    candidate.partitions.extend(partitions)
    candidate.replicas[:] = where.replicas
    candidate.revision = spec_revision(found.revision, spec.dtype, weighed.cuts)
    candidate.plan.CopyFrom(where.record)
    return candidate


async def _inspect(spec: ModelSpec) -> checkpoints.Checkpoint:
    return await asyncio.to_thread(checkpoints.inspect_source, spec.source, spec.hub_revision)
