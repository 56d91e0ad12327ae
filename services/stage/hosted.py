"""A partition that a node was told to host, from loading to its end."""

import asyncio
from dataclasses import dataclass, field

from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord, ReplicaState
from stagemesh.v1.stage_pb2 import PartitionStatus

from .head import Head
from .replica import Replica
from .warm.kept import Key, Loaded


@dataclass(slots=True, eq=False)
class Hosted:
    """One assignment and what became of it.

    Attributes:
        assignment: what was asked for.
        record: what is published of it.
        replica: once it is loaded.
        head: the same on stage 0.
        task: that loads it.
        hangs: a pass of it does not end.
        closed: it takes no more sessions.
        key: which partition it is, among those that are kept.
        loaded: the partition.
        gone: set when it is over.
    """

    assignment: Assignment
    record: ReplicaRecord
    replica: Replica | None = None
    head: Head | None = None
    task: asyncio.Task[None] | None = None
    hangs: bool = False
    closed: bool = False
    key: Key | None = None
    loaded: Loaded | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def serves(self) -> bool:
        """Whether sessions may come."""
        failed = self.record.state == ReplicaState.REPLICA_STATE_FAILED
        return self.replica is not None and not failed and not self.closed

    @property
    def state(self) -> str:
        """LOADING, READY, DRAINING or FAILED."""
        return ReplicaState.Name(self.record.state).removeprefix("REPLICA_STATE_")

    def status(self) -> PartitionStatus:
        """For operators."""
        return PartitionStatus(
            replica_id=self.assignment.replica_id,
            model=self.assignment.model,
            stage=self.assignment.stage,
            state=self.state,
            detail=self.record.detail,
            load=self.replica.load() if self.replica is not None else None,
        )
