"""The control loop: looks at the world, has the plan made, and writes it to etcd while this registry leads."""

import asyncio
import logging
import time
import uuid
from dataclasses import replace
from random import Random

from stagemesh import metrics, records
from stagemesh.errors import StagemeshError
from stagemesh.etcd import Delete, Etcd, Guard, Put

from .assign import Patience, Plan, decide
from .board import Assign, Decision
from .leadership import Fenced, Leadership
from .mirror import Mirror
from .world import History, observe

log = logging.getLogger(__name__)

_TICK_S = 1.0
_DEBOUNCE_S = 0.05


class Controller:
    """Runs the plan at every change (gathered for 50 ms) and once a second."""

    def __init__(
        self,
        etcd: Etcd,
        mirror: Mirror,
        leadership: Leadership,
        patience: Patience,
        rng: Random | None = None,
    ) -> None:
        self._etcd = etcd
        self._mirror = mirror
        self._leadership = leadership
        self._patience = patience
        self._rng = rng or Random()
        self._history = History()
        self._snapshots = 0
        self._led = False
        # Per model, one line for each replica that no node can take.
        self.pending: dict[str, list[str]] = {}
        self._leader_gauge = metrics.gauge("stagemesh_registry_leader", "1 while this registry leads.")
        self._pending_gauge = metrics.gauge(
            "stagemesh_registry_pending_replicas", "Replicas that no node can take."
        )
        self._decisions = metrics.counter(
            "stagemesh_registry_decisions_total", "Assignments written or removed.", ("kind",)
        )
        self._fenced = metrics.counter(
            "stagemesh_registry_fenced_total", "Times that a former leader was kept from writing."
        )

    def __repr__(self) -> str:
        return f"<Controller {self._leadership!r} {self._mirror!r} pending={sum(map(len, self.pending.values()))}>"

    @property
    def history(self) -> History:
        """What it remembers of nodes that are absent and loads that failed."""
        return self._history

    async def run(self) -> None:
        """Control; does not return. Absences of etcd are waited out."""
        await self._mirror.synced.wait()
        while True:
            try:
                await self._step()
            except Fenced as error:
                log.warning("registry.fenced: %s", error)
                self._fenced.inc()
                self._note_leadership()
            except StagemeshError as error:
                log.warning("registry.step_failed: %s", error)
            except Exception:
                log.exception("registry.step_failed")
            await self._next_change()

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(_TICK_S):
                await self._mirror.changed.wait()
            await asyncio.sleep(_DEBOUNCE_S)
        except TimeoutError:
            pass
        self._mirror.changed.clear()

    async def _step(self) -> None:
        try:
            leads = await self._leadership.refresh()
        finally:
            self._note_leadership()
        term = self._leadership.term
        # All that former leaders wrote lies before the term: until it has arrived here, a replica that they assigned would
        # seem to be missing.
        leads = leads and self._mirror.has_seen(self._leadership.name, term)
        if leads:
            await self._keep_store(term)
        plan = self._plan()
        self._note_pending(plan)
        if leads:
            for decision in plan.decisions:
                if not self._leadership.leads:
                    return
                await self._apply(decision, term)

    async def _keep_store(self, term: int) -> None:
        """Mark a store that has no mark, and give one that was lost its desired state again."""
        for key, record in list(self._mirror.unwritten.items()):
            # What somebody wrote there since is newer: the watch brings it.
            await self._create(key, records.to_json(record), term)
            self._mirror.unwritten.pop(key, None)
        if self._mirror.mark is None:
            mark = uuid.uuid4().hex.encode()
            if await self._create(records.STORE, mark, term):
                self._mirror.mark = mark

    async def _create(self, key: str, value: bytes, term: int) -> int:
        """Write a key that is not there; the revision, 0 if it is."""
        absent = Guard(key, create_revision=0)
        return await self._leadership.commit([Put(key, value)], guards=[absent], term=term)

    def _plan(self) -> Plan:
        if self._mirror.snapshots != self._snapshots:
            # The watch broke: records may be missing only because nodes were cut off as well. Wait anew.
            self._snapshots = self._mirror.snapshots
            self._history = replace(self._history, absent_since={})
        now = time.monotonic()
        world = self._mirror.world()
        self._history = observe(self._history, world, now)
        return decide(world, self._history, self._patience, now, self._rng)

    async def _apply(self, decision: Decision, term: int) -> None:
        if isinstance(decision, Assign):
            assignment = decision.assignment
            key = records.assignment_key(assignment.node_id, assignment.replica_id)
            revision = await self._create(key, records.to_json(assignment), term)
            self._mirror.note(key, assignment, revision)
            kind, node_id, replica_id = "assign", assignment.node_id, assignment.replica_id
        else:
            key = records.assignment_key(decision.node_id, decision.replica_id)
            revision = await self._leadership.commit([Delete(key)], term=term)
            self._mirror.forget(key, revision)
            kind, node_id, replica_id = "unassign", decision.node_id, decision.replica_id
        self._decisions.labels(kind).inc()
        log.info("registry.%s replica=%s node=%s: %s", kind, replica_id, node_id, decision.reason)

    def _note_leadership(self) -> None:
        if self._leadership.leads != self._led:
            self._led = self._leadership.leads
            log.info("registry.leader %s", "gained" if self._led else "lost")
        self._leader_gauge.set(self._led)

    def _note_pending(self, plan: Plan) -> None:
        for model, lines in plan.pending.items():
            if lines != self.pending.get(model):
                log.warning("registry.pending model=%s: %s", model, "; ".join(lines))
        self.pending = plan.pending
        self._pending_gauge.set(sum(map(len, plan.pending.values())))
