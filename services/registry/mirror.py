"""A local copy of everything under the mesh's root in etcd, kept by one watch. Never ahead of what was written."""

import asyncio
import logging
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from stagemesh import records
from stagemesh.etcd import Change, Etcd, Snapshot
from stagemesh.v1.registry_pb2 import (
    Assignment,
    ModelSpec,
    NodeRecord,
    ReplicaRecord,
    ScaleRecord,
    ServiceRecord,
)

from .world import World

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
_KINDS: dict[str, type[Message]] = {
    records.MODELS: ModelSpec,
    records.NODES: NodeRecord,
    records.ASSIGNMENTS: Assignment,
    records.REPLICAS: ReplicaRecord,
    records.SCALES: ScaleRecord,
    records.SERVICES: ServiceRecord,
}


# What no lease brings back when the store is lost: only a registry remembers it.
_DESIRED = (records.MODELS, records.ASSIGNMENTS, records.SCALES)


class Mirror:
    """The records by key, as of `revision`. `changed` is set at every change; `snapshots` counts how often all was read anew.

    `mark` is the store's; when a store with another mark, or none, takes its place, `unwritten` holds the desired state of
    before that the new one does not have, until it is written again.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._records: dict[str, Message] = {}
        self.changed = asyncio.Event()
        self.synced = asyncio.Event()
        self.snapshots = 0
        self.revision = 0
        # What this process wrote and the watch has not brought yet: by key, at which revision.
        self._ahead: dict[str, tuple[int, Message | None]] = {}
        self.leader: bytes | None = None
        self.mark: bytes | None = None
        self.unwritten: dict[str, Message] = {}

    def has_seen(self, leader: bytes, term: int) -> bool:
        """Whether all that was written before `leader`'s term began is in here."""
        return self.leader == leader and self.revision >= term

    def __repr__(self) -> str:
        return f"<Mirror keys={len(self._records)} snapshots={self.snapshots}>"

    async def follow(self) -> None:
        """Keep the copy up to date; does not return."""
        async with aclosing(self._etcd.watch(records.ROOT)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Snapshot):
                    self._on_snapshot(event)
                else:
                    self._on_change(event)

    def _on_change(self, change: Change) -> None:
        self.revision = change.revision
        if change.key.startswith(records.EVENTS):
            return  # they say what was done, and ask for nothing
        ahead = self._ahead.get(change.key)
        if ahead is not None:
            if change.revision < ahead[0]:
                return  # what this process has written since is known already
            del self._ahead[change.key]
        if change.key == records.LEADER:
            self.leader = change.value
        if change.value is None:
            self.forget(change.key)
        else:
            self._take(change.key, change.value)
            self.changed.set()

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        mark = snapshot.items.get(records.STORE)
        lost = self.unwritten
        if self.mark not in (None, mark):
            self._ahead.clear()
            lost = {key: record for key, record in self._records.items() if key.startswith(_DESIRED)}
        self.unwritten = {key: record for key, record in lost.items() if key not in snapshot.items}
        if self.unwritten:
            log.warning("registry.store_lost: %d records are written again", len(self.unwritten))
        self.mark = mark
        self._records = dict(self.unwritten)
        for key, value in snapshot.items.items():
            self._take(key, value)
        self.revision, self.leader = snapshot.revision, snapshot.items.get(records.LEADER)
        self._ahead = {key: ahead for key, ahead in self._ahead.items() if ahead[0] > snapshot.revision}
        for key, (_, record) in self._ahead.items():
            if record is None:
                self._records.pop(key, None)
            else:
                self._records[key] = record
        self.snapshots += 1
        self.synced.set()
        self.changed.set()

    def note(self, key: str, record: Message, revision: int = 0) -> None:
        """Take in what this process has just written, ahead of the watch; at a revision, nothing older undoes it."""
        self._note_ahead(key, record, revision)
        self._records[key] = record
        self.changed.set()

    def forget(self, key: str, revision: int = 0) -> None:
        """Take in that a key is gone; at a revision, nothing older brings it back."""
        self._note_ahead(key, None, revision)
        self._records.pop(key, None)
        self.unwritten.pop(key, None)
        self.changed.set()

    def _note_ahead(self, key: str, record: Message | None, revision: int) -> None:
        if revision > self.revision:
            self._ahead[key] = revision, record

    def world(self) -> World:
        """The records of now."""
        return World(
            models={record.name: record for record in self._all(records.MODELS, ModelSpec)},
            nodes={record.node_id: record for record in self._all(records.NODES, NodeRecord)},
            assignments={record.replica_id: record for record in self._all(records.ASSIGNMENTS, Assignment)},
            replicas={record.replica_id: record for record in self._all(records.REPLICAS, ReplicaRecord)},
            scales={record.model: record for record in self._all(records.SCALES, ScaleRecord)},
        )

    def models(self) -> list[ModelSpec]:
        """Every model's record."""
        return self._all(records.MODELS, ModelSpec)

    def routers(self) -> set[str]:
        """Ids of the routers that are there."""
        return {one.id for one in self._all(records.SERVICES, ServiceRecord) if one.kind == "router"}

    def _all(self, prefix: str, kind: type[M]) -> list[M]:
        return [
            record
            for key, record in self._records.items()
            if key.startswith(prefix) and isinstance(record, kind)
        ]

    def _take(self, key: str, value: bytes) -> None:
        self.unwritten.pop(key, None)
        if key == records.STORE:
            self.mark = value
        kind = next((kind for prefix, kind in _KINDS.items() if key.startswith(prefix)), None)
        if kind is None:
            return
        try:
            self._records[key] = records.from_json(value, kind)
        except ValueError as error:
            log.error("registry.record_unreadable key=%s: %s", key, error)
            self._records.pop(key, None)
