"""The node: announces itself, and makes what it hosts follow what it was assigned.

Level-triggered: the watch says what should be here, and each difference becomes one task.
"""

import asyncio
import gc
import logging
import os
import time

from stagemesh import records
from stagemesh.errors import CheckpointError, StagemeshError
from stagemesh.etcd import Change, Etcd, Lease, Snapshot
from stagemesh.loop_lag import LoopLag
from stagemesh.malloc import return_free_blocks
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord, ReplicaRecord, ReplicaState
from stagemesh.v1.stage_pb2 import NodeStatus

from . import metrics
from .canary import probe
from .config import StageConfig
from .head import Head
from .hosted import Hosted
from .loading import load_assigned
from .partition.interface import Partition
from .replica import Replica

log = logging.getLogger(__name__)

SWEEP_S = 1.0
# Positions that a session is expected to take where the model sets no limit.
UNKNOWN_CONTEXT = 8192


class Node:
    """What one stage process hosts.

    Args:
        config: its settings, with `device` resolved.
        record: its record in etcd.
        etcd: started.
        lease: under which everything it announces lives.
        lag: of its event loop.
    """

    def __init__(
        self, config: StageConfig, record: NodeRecord, etcd: Etcd, lease: Lease, lag: LoopLag
    ) -> None:
        self._config = config
        self._record = record
        self._etcd = etcd
        self._lease = lease
        self._lag = lag
        self._hosted: dict[str, Hosted] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._missing_since: dict[str, float] = {}
        self._loading = asyncio.Lock()

    def __repr__(self) -> str:
        states = ", ".join(f"{replica_id}:{hosted.state}" for replica_id, hosted in self._hosted.items())
        return f"<Node {self._record.node_id} [{states}]>"

    def find(self, replica_id: str) -> Hosted | None:
        """What is hosted under that id, loaded."""
        hosted = self._hosted.get(replica_id)
        return hosted if hosted is not None and hosted.replica is not None else None

    def status(self) -> NodeStatus:
        """For operators."""
        partitions = [hosted.status() for hosted in self._hosted.values()]
        return NodeStatus(
            node_id=self._record.node_id, partitions=partitions, loop_lag_ms=self._lag.milliseconds
        )

    async def run(self) -> None:
        """Announce the node and follow its assignments until cancelled."""
        node_id = self._record.node_id
        await self._lease.put(records.node_key(node_id), records.to_json(self._record))
        sweeper = asyncio.create_task(self._sweep(), name="sweep")
        wanted: dict[str, Assignment] = {}
        try:
            async for update in self._etcd.watch(records.assignments_of(node_id)):
                if isinstance(update, Snapshot):
                    wanted = self._on_snapshot(update, wanted)
                else:
                    self._on_change(update, wanted)
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)

    # ---- what should be here ----

    def _on_snapshot(self, snapshot: Snapshot, before: dict[str, Assignment]) -> dict[str, Assignment]:
        wanted: dict[str, Assignment] = {}
        for key, value in snapshot.items.items():
            assignment = _parse(key, value)
            if assignment is not None:
                wanted[assignment.replica_id] = assignment
        for replica_id in before.keys() - wanted.keys():
            # etcd may be back without its data: what is loaded stays until it had time to be asked for again.
            self._missing_since.setdefault(replica_id, time.monotonic())
        for assignment in wanted.values():
            self._want(assignment)
        return wanted

    def _on_change(self, change: Change, wanted: dict[str, Assignment]) -> None:
        replica_id = change.key.rpartition("/")[2]
        if change.value is None:
            wanted.pop(replica_id, None)
            self._unwant(replica_id)
            return
        assignment = _parse(change.key, change.value)
        if assignment is not None:
            wanted[replica_id] = assignment
            self._want(assignment)

    def _want(self, assignment: Assignment) -> None:
        self._missing_since.pop(assignment.replica_id, None)
        hosted = self._hosted.get(assignment.replica_id)
        if hosted is not None:
            same = (
                hosted.assignment.partition == assignment.partition
                and hosted.assignment.revision == assignment.revision
            )
            if same:
                return
            self._unwant(assignment.replica_id)
        hosted = Hosted(assignment, self._replica_record(assignment))
        self._hosted[assignment.replica_id] = hosted
        hosted.task = asyncio.create_task(self._load(hosted), name=f"load-{assignment.replica_id}")

    def _unwant(self, replica_id: str) -> None:
        self._missing_since.pop(replica_id, None)
        hosted = self._hosted.pop(replica_id, None)
        if hosted is not None:
            task = asyncio.create_task(self._unload(hosted), name=f"unload-{replica_id}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _sweep(self) -> None:
        """Drop sessions past their deadline, and replicas that were not asked for again."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for replica_id, since in list(self._missing_since.items()):
                if now - since > 2 * self._config.lease_ttl_s:
                    self._unwant(replica_id)
            for hosted in self._hosted.values():
                if hosted.replica is not None:
                    hosted.replica.drop_overdue(time.time())

    # ---- one replica ----

    def _replica_record(self, assignment: Assignment) -> ReplicaRecord:
        return ReplicaRecord(
            replica_id=assignment.replica_id,
            model=assignment.model,
            revision=assignment.revision,
            stage=assignment.stage,
            stages=assignment.stages,
            partition=assignment.partition,
            node_id=self._record.node_id,
            address=self._record.address,
            pid=os.getpid(),
            zone=self._record.zone,
            state=ReplicaState.REPLICA_STATE_LOADING,
            generation=assignment.generation,
        )

    async def _publish(self, hosted: Hosted, state: ReplicaState, detail: str = "") -> None:
        hosted.record.state = state
        hosted.record.detail = detail
        key = records.replica_key(
            hosted.assignment.model, hosted.assignment.stage, hosted.assignment.replica_id
        )
        await self._lease.put(key, records.to_json(hosted.record))
        log.info("replica.%s %s %s", hosted.state, hosted.assignment.replica_id, detail)
        ready = sum(one.record.state == ReplicaState.REPLICA_STATE_READY for one in self._hosted.values())
        metrics.REPLICAS.set(ready)

    async def _load(self, hosted: Hosted) -> None:
        assignment = hosted.assignment
        try:
            await self._publish(hosted, ReplicaState.REPLICA_STATE_LOADING)
            found = await self._etcd.get(records.model_key(assignment.model))
            if found is None:
                raise CheckpointError("the model was undeployed meanwhile")
            spec = records.from_json(found.value, ModelSpec)
            async with self._loading:  # one at a time: each must see what the one before it took
                free = self._free_bytes()
                model = await asyncio.to_thread(
                    load_assigned, spec, assignment, self._config.device, free, self._config.fast
                )
                kv_bytes = self._kv_bytes(model, spec, free - model.weight_bytes)
                replica = Replica(assignment.replica_id, assignment.model, assignment.stage, model, kv_bytes)
                replica.shared_memory_bytes = self._config.shared_memory_mb * 2**20
                hosted.record.canary_ms = await probe(replica)
                # The average begins warm: the canary's first pass would make the replica look slow for long.
                replica.engine.step_ms = hosted.record.canary_ms
                hosted.record.kv_bytes_total = kv_bytes
                hosted.replica = replica
            if assignment.stage == 0:
                hosted.head = Head(replica, assignment.stages, self._config.chunk_tokens)
            await self._publish(hosted, ReplicaState.REPLICA_STATE_READY)
        except StagemeshError as error:
            await self._publish(hosted, ReplicaState.REPLICA_STATE_FAILED, error.message)
        except Exception as error:
            log.exception("loading %s failed", assignment.replica_id)
            detail = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            await self._publish(hosted, ReplicaState.REPLICA_STATE_FAILED, detail)

    def _kv_bytes(self, model: Partition, spec: ModelSpec, left: int) -> int:
        """Budget for KV: what a full house of longest sessions needs, within the share that may be taken."""
        wanted = (
            self._config.max_sessions * model.kv_layout.sequence_bytes(spec.context_length or UNKNOWN_CONTEXT)
            if model.generates
            else 0
        )
        return min(wanted, int(left * self._config.kv_fraction))

    def _free_bytes(self) -> int:
        """What is left of the node's memory beside the partitions it hosts."""
        used = sum(
            hosted.replica.model.weight_bytes + hosted.replica.pool.budget_bytes
            for hosted in self._hosted.values()
            if hosted.replica is not None
        )
        return max(0, self._record.memory_bytes - used)

    async def _unload(self, hosted: Hosted) -> None:
        """Stop being chosen, let sessions finish, then free everything."""
        if hosted.record.state == ReplicaState.REPLICA_STATE_READY:
            await self._publish(hosted, ReplicaState.REPLICA_STATE_DRAINING)
            await self._wait_idle([hosted], self._config.drain_s)
        await self._shut(hosted)
        key = records.replica_key(
            hosted.assignment.model, hosted.assignment.stage, hosted.assignment.replica_id
        )
        await self._lease.delete(key)
        hosted.replica = hosted.head = None
        await asyncio.to_thread(_give_back)

    async def _wait_idle(self, hosted: list[Hosted], seconds: float) -> None:
        """Wait until no sessions are left, at most `seconds`; routers need a moment to look elsewhere first."""
        end = time.monotonic() + seconds
        await asyncio.sleep(min(0.2, seconds))
        while time.monotonic() < end and any(one.replica and one.replica.sessions for one in hosted):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def drain(self) -> None:
        """On SIGTERM: vanish from etcd, let sessions finish, free everything."""
        await self._lease.revoke()
        hosted = list(self._hosted.values())
        await self._wait_idle(hosted, self._config.drain_s)
        await asyncio.gather(*(self._shut(one) for one in hosted), *self._ending, return_exceptions=True)

    async def _shut(self, hosted: Hosted) -> None:
        if hosted.task is not None:
            hosted.task.cancel()
            await asyncio.gather(hosted.task, return_exceptions=True)
        if hosted.head is not None:
            await hosted.head.close()
        if hosted.replica is not None:
            await hosted.replica.close()


def _give_back() -> None:
    """Weights that nobody uses any more leave the heap, which keeps large blocks otherwise."""
    gc.collect()
    return_free_blocks()


def _parse(key: str, value: bytes) -> Assignment | None:
    """An assignment, or None and a line in the log when the record cannot be read."""
    try:
        return records.from_json(value, Assignment)
    except ValueError as error:
        log.error("%s: %s", key, error)
        return None
