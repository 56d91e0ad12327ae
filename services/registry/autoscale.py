"""Has the autoscaler decide twice a second while this registry leads, and writes what it decided.

The decisions are made in `scaling`, which is pure; here they become records: a scale record that the plan follows, or an assignment
that stands in for another one. Whatever is written is fenced with the term in which it was decided, and each is an event.
"""

import logging
import time
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from stagemesh import records
from stagemesh.etcd import Delete, Etcd, Guard, Put
from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import LoadReport, ModelSpec, ScaleRecord

from .again import again_and_again
from .controller import Controller
from .events import Events
from .leadership import Leadership
from .mirror import Mirror
from .node_pool import NodePool
from .placement import new_assignment
from .scaling.autoscaler import Autoscaler, Patience
from .scaling.limits import Defaults, limits_of
from .scaling.load import Decision, ModelLoad
from .scaling.packing import Consolidator, Move
from .scaling.reports import Reports
from .scaling_gauges import ScalingGauges
from .scaling_view import View
from .world import World

log = logging.getLogger(__name__)

TICK_S = 0.5
_REASON = 500
# Of arrivals that one report tells; a preloader learns little from more at one time.
_TOLD = 100


class Preloads(Protocol):
    """Says which models should be awake although nobody asks, see `preload`."""

    def observe(self, model: str, now_s: float) -> None:
        """A request came."""

    def wanted(self, now_s: float) -> dict[str, str]:
        """Models that should be awake, with the reason."""

    def keep_alive_s(self, model: str, now_s: float) -> float:
        """Seconds without a request after which the model may sleep."""


@dataclass(frozen=True)
class Settings:
    """What the operator set."""

    defaults: Defaults = field(default_factory=Defaults)
    patience: Patience = field(default_factory=Patience)
    # Seconds for which nodes have to be little used before they are emptied; 0 never empties one.
    consolidate_after_s: float = 60.0
    # Nodes are started and stopped by somebody who counts them up.
    node_pool: bool = False


class Autoscale:
    """One task; `take` is where load reports come in."""

    def __init__(
        self,
        etcd: Etcd,
        mirror: Mirror,
        leadership: Leadership,
        controller: Controller,
        events: Events,
        nodes: NodePool,
        settings: Settings,
        preloads: Preloads | None = None,
        rng: Random | None = None,
    ) -> None:
        self._etcd = etcd
        self._mirror = mirror
        self._leadership = leadership
        self._controller = controller
        self._events = events
        self._nodes = nodes
        self._settings = settings
        self._preloads = preloads
        self._rng = rng or Random()
        self._term = 0
        self._reset()
        self._gauges = ScalingGauges()

    def __repr__(self) -> str:
        return f"<Autoscale {self._autoscaler!r} {self.reports!r}>"

    def _reset(self) -> None:
        """What a former term saw is old: begin anew."""
        self.reports = Reports()
        self._autoscaler = Autoscaler(self._settings.patience)
        self._consolidator = Consolidator(
            after_s=self._settings.consolidate_after_s, in_order=self._settings.node_pool
        )
        self._nodes.reset()

    def take(self, report: LoadReport, now: float) -> None:
        """A report of a node or a router, at monotonic seconds."""
        self.reports.take(report, now)
        if self._preloads is not None:
            for model in report.models:
                for _ in range(min(model.arrivals, _TOLD)):
                    self._preloads.observe(model.model, now)

    async def run(self) -> None:
        """Decide; does not return."""
        await again_and_again("autoscale", lambda: self.step(time.monotonic()), TICK_S, self._mirror.synced)

    async def step(self, now: float) -> None:
        """Look, decide and write once; `now` in seconds, on the clock of `take`."""
        term = self._leadership.term
        if not self._leadership.leads or not self._mirror.has_seen(self._leadership.name, term):
            self._gauges.show(())
            return
        if term != self._term:
            self._reset()
            self._term = term
        view = View(self._mirror.world())
        loads = self._loads(view, now)
        self._gauges.show(loads)
        scaling = [load for load in loads if view.world.models[load.model].HasField("scaling")]
        for load in scaling:
            log.debug("autoscale.load %s", load)
        for decision in self._autoscaler.decide(scaling, now):
            await self._scale(decision, term)
        await self._sweep(view.world, term)
        settled = view.settled and not self._controller.pending
        boxes = view.boxes(self.reports.busy_of)
        allowed = view.allowed(self._controller.history)
        for move in self._consolidator.decide(boxes, allowed, settled=settled, now=now):
            await self._move(view.world, move, term)
        await self._nodes.step(boxes, view.pending(), now, term)
        self.reports.forget(view.world.assignments.keys(), view.world.models.keys(), now)

    def _loads(self, view: View, now: float) -> list[ModelLoad]:
        routers = self._mirror.routers()
        because = self._preloads.wanted(now) if self._preloads is not None else {}
        loads: list[ModelLoad] = []
        for name, spec in sorted(view.world.models.items()):
            limits = limits_of(spec.scaling, self._settings.defaults)
            idle_s = None
            if self._preloads is not None:
                # What the user named is the most; within it the history decides.
                keep_s = self._preloads.keep_alive_s(name, now)
                idle_s = min(keep_s, limits.idle_s) if limits.own_idle else keep_s
            loads.append(
                self.reports.load(
                    name,
                    limits,
                    view.wanted(spec),
                    view.ready[name],
                    # Part of the traffic goes to a rollout's candidate: what is left shows no need for less.
                    routers=routers | {"a rollout"} if rolls_out(spec) else routers,
                    now=now,
                    awake_because=because.get(name, ""),
                    idle_s=idle_s,
                )
            )
        return loads

    async def _scale(self, decision: Decision, term: int) -> None:
        """Write the decision if what it was made from still stands; else somebody was faster, and the next look sees it."""
        if decision.replicas != decision.expected:
            key = records.scale_key(decision.model)
            found = await self._etcd.get(key)
            seen = self._mirror.world().scales.get(decision.model)
            if (found is None) != (seen is None) or (
                found is not None and records.from_json(found.value, ScaleRecord) != seen
            ):
                return
            record = ScaleRecord(
                model=decision.model,
                replicas=decision.replicas,
                reason=decision.reason[:_REASON],
                unix_ms=int(time.time() * 1000),
            )
            guard = Guard(key, mod_revision=found.mod_revision if found is not None else 0)
            revision = await self._leadership.commit(
                [Put(key, records.to_json(record))], guards=[guard], term=term
            )
            if not revision:
                return
            self._mirror.note(key, record, revision)
        self._events.note(decision.kind, decision.model, decision.reason, **decision.numbers)

    async def _sweep(self, world: World, term: int) -> None:
        """Records of models that are gone, or that no longer scale themselves."""
        for name in world.scales.keys() - {
            name for name, spec in world.models.items() if spec.HasField("scaling")
        }:
            key = records.scale_key(name)
            self._mirror.forget(key, await self._leadership.commit([Delete(key)], term=term))

    async def _move(self, world: World, move: Move, term: int) -> None:
        """Start a stand-in; the plan takes the replica away when that one is ready."""
        spec = world.models.get(move.piece.model, ModelSpec())
        assignment = new_assignment(spec, move.piece.stage, world.nodes[move.target], self._rng)
        assignment.replaces = move.piece.replica_id
        key = records.assignment_key(assignment.node_id, assignment.replica_id)
        absent = Guard(key, create_revision=0)
        revision = await self._leadership.commit(
            [Put(key, records.to_json(assignment))], guards=[absent], term=term
        )
        if revision:
            self._mirror.note(key, assignment, revision)
            self._events.note(
                "consolidate.move",
                move.piece.model,
                f"stage {move.piece.stage} from node {move.source} to {move.target}: {move.reason}",
                stage=float(move.piece.stage),
                bytes=float(move.piece.nbytes),
            )
