"""The node: announces itself, and makes what it hosts follow what it was assigned.

Level-triggered: the watch says what should be here, and each difference becomes one task.
"""

import asyncio
import logging
import os
import time

from stagemesh import records
from stagemesh.etcd import Change, Etcd, Lease, Snapshot
from stagemesh.loop_lag import LoopLag
from stagemesh.v1.registry_pb2 import Assignment, LoadReport, NodeRecord, ReplicaRecord, ReplicaState
from stagemesh.v1.stage_pb2 import NodeStatus

from .config import StageConfig
from .hosted import Hosted
from .hosting import Hosting
from .load_report import LoadReports

log = logging.getLogger(__name__)

SWEEP_S = 1.0


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
        self._hosting = Hosting(config, record, etcd, lease)
        self._hosted = self._hosting.hosted
        self._load_reports = LoadReports(record.node_id)
        self._ending: set[asyncio.Task[None]] = set()
        self._missing_since: dict[str, float] = {}

    def __repr__(self) -> str:
        states = ", ".join(f"{replica_id}:{hosted.state}" for replica_id, hosted in self._hosted.items())
        return f"<Node {self._record.node_id} [{states}]>"

    def find(self, replica_id: str) -> Hosted | None:
        """What is hosted under that id and serves."""
        return self._hosting.find(replica_id)

    @property
    def given_up(self) -> asyncio.Event:
        """Set when something hangs here for good, and the process must end."""
        return self._hosting.given_up

    @property
    def why(self) -> str:
        """What hangs."""
        return self._hosting.why

    def status(self) -> NodeStatus:
        """For operators."""
        partitions = [hosted.status() for hosted in self._hosted.values()]
        return NodeStatus(
            node_id=self._record.node_id, partitions=partitions, loop_lag_ms=self._lag.milliseconds
        )

    def load_report(self, covers_s: float) -> LoadReport:
        """For the registry: what each replica that serves had to do in the last so many seconds."""
        serving = [
            (hosted.replica, hosted.assignment.revision)
            for hosted in self._hosted.values()
            if hosted.replica is not None and hosted.serves
        ]
        return self._load_reports.make(serving, covers_s)

    async def run(self) -> None:
        """Announce the node and follow its assignments until cancelled."""
        node_id = self._record.node_id
        await self._hosting.announce()
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
        self._hosting.begin(Hosted(assignment, self._replica_record(assignment)))

    def _unwant(self, replica_id: str) -> None:
        self._missing_since.pop(replica_id, None)
        hosted = self._hosted.pop(replica_id, None)
        if hosted is not None:
            task = asyncio.create_task(self._hosting.unload(hosted), name=f"unload-{replica_id}")
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
            await self._hosting.relieve()

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

    async def drain(self) -> None:
        """On SIGTERM: no longer be chosen, let sessions finish or go elsewhere, vanish from etcd, free everything."""
        await self._hosting.drain()
        await asyncio.gather(*self._ending, return_exceptions=True)


def _parse(key: str, value: bytes) -> Assignment | None:
    """An assignment, or None and a line in the log when the record cannot be read."""
    try:
        return records.from_json(value, Assignment)
    except ValueError as error:
        log.error("%s: %s", key, error)
        return None
