"""A local copy of everything under the mesh's root in etcd, kept by one watch. Never ahead of what was written."""

import asyncio
import logging
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from stagemesh import records
from stagemesh.etcd import Etcd, Snapshot
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord, ReplicaRecord, ScaleRecord

from .world import World

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
_KINDS: dict[str, type[Message]] = {
    records.MODELS: ModelSpec,
    records.NODES: NodeRecord,
    records.ASSIGNMENTS: Assignment,
    records.REPLICAS: ReplicaRecord,
    records.SCALES: ScaleRecord,
}


# What no lease brings back when the store is lost: only a registry remembers it.
_DESIRED = (records.MODELS, records.ASSIGNMENTS, records.SCALES)


class Mirror:
    """The records by key. `changed` is set at every change; `snapshots` counts how often all was read anew.

    `mark` is the store's; when a store with another mark, or none, takes its place, `unwritten` holds the desired state of
    before that the new one does not have, until it is written again.
    """

    def __init__(self, etcd: Etcd) -> None:
        self._etcd = etcd
        self._records: dict[str, Message] = {}
        self.changed = asyncio.Event()
        self.synced = asyncio.Event()
        self.snapshots = 0
        self.mark: bytes | None = None
        self.unwritten: dict[str, Message] = {}

    def __repr__(self) -> str:
        return f"<Mirror keys={len(self._records)} snapshots={self.snapshots}>"

    async def follow(self) -> None:
        """Keep the copy up to date; does not return."""
        async with aclosing(self._etcd.watch(records.ROOT)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, Snapshot):
                    self._on_snapshot(event)
                elif event.key.startswith(records.EVENTS):
                    continue  # they say what was done, and ask for nothing
                elif event.value is None:
                    self.forget(event.key)
                else:
                    self._take(event.key, event.value)
                    self.changed.set()

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        mark = snapshot.items.get(records.STORE)
        lost = self.unwritten
        if self.mark not in (None, mark):
            lost = {key: record for key, record in self._records.items() if key.startswith(_DESIRED)}
        self.unwritten = {key: record for key, record in lost.items() if key not in snapshot.items}
        if self.unwritten:
            log.warning("registry.store_lost: %d records are written again", len(self.unwritten))
        self.mark = mark
        self._records = dict(self.unwritten)
        for key, value in snapshot.items.items():
            self._take(key, value)
        self.snapshots += 1
        self.synced.set()
        self.changed.set()

    def note(self, key: str, record: Message) -> None:
        """Take in what this process has just written, ahead of the watch."""
        self._records[key] = record
        self.changed.set()

    def forget(self, key: str) -> None:
        """Take in that a key is gone."""
        self._records.pop(key, None)
        self.unwritten.pop(key, None)
        self.changed.set()

    def world(self) -> World:
        """The records of now."""
        return World(
            models={record.name: record for record in self._all(records.MODELS, ModelSpec)},
            nodes={record.node_id: record for record in self._all(records.NODES, NodeRecord)},
            assignments={record.replica_id: record for record in self._all(records.ASSIGNMENTS, Assignment)},
            replicas={record.replica_id: record for record in self._all(records.REPLICAS, ReplicaRecord)},
            scales={record.model: record for record in self._all(records.SCALES, ScaleRecord)},
        )

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
