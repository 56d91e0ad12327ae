"""The replicas that can serve, by the partition that they hold, in order: kept up to date one change at a time. Pure."""

from bisect import bisect_left
from collections import Counter

from stagemesh.v1 import registry_pb2

Place = tuple[str, str, int, int, int, int]
"""Model, revision, stages, stage, first layer, end layer: what replicas of one place have in common."""


class _Row:
    """The replicas of one place by name; `shown` is a copy that stays as it is, made when somebody looks."""

    __slots__ = ("names", "records", "shown")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.records: list[registry_pb2.ReplicaRecord] = []
        self.shown: list[registry_pb2.ReplicaRecord] | None = None


class ReadyTable:
    """A change costs a search in the replicas of its place, whatever else there is; a look copies only what changed."""

    def __init__(self) -> None:
        self._rows: dict[Place, _Row] = {}
        self._places: dict[str, Place] = {}
        # By model and revision, of those that have replicas.
        self._versions: dict[tuple[str, str], int] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._changes = 0

    def __repr__(self) -> str:
        return f"ReadyTable(replicas={len(self._places)}, places={len(self._rows)})"

    def put(self, name: str, record: registry_pb2.ReplicaRecord) -> None:
        """A replica as it is now, by its name in the order."""
        place = _place(record)
        before = self._places.get(name)
        if before is not None and before != place:
            self.drop(name)
        if place is None:
            return
        row = self._rows.get(place)
        if row is None:
            row = self._rows[place] = _Row()
        at = bisect_left(row.names, name)
        if before == place:
            row.records[at] = record
        else:
            row.names.insert(at, name)
            row.records.insert(at, record)
            self._places[name] = place
            self._counts[place[:2]] += 1
        self._changed(place, row)

    def drop(self, name: str) -> None:
        """A replica is gone; nothing, if it was not here."""
        place = self._places.pop(name, None)
        if place is None:
            return
        row = self._rows[place]
        at = bisect_left(row.names, name)
        del row.names[at], row.records[at]
        self._changed(place, row)
        if not row.names:
            del self._rows[place]
        self._counts[place[:2]] -= 1
        if not self._counts[place[:2]]:
            del self._counts[place[:2]], self._versions[place[:2]]

    def version(self, model: str, revision: str) -> int:
        """While it is the same number, no replica of that revision came, changed or went; 0: there is none."""
        return self._versions.get((model, revision), 0)

    def stages(self, spec: registry_pb2.ModelSpec) -> list[list[registry_pb2.ReplicaRecord]]:
        """Per stage of `spec`, the replicas that hold exactly its partition; of a stage without a change the same list as last time."""
        count = len(spec.partitions)
        return [
            self._shown((spec.name, spec.revision, count, stage, part.first_layer, part.end_layer))
            for stage, part in enumerate(spec.partitions)
        ]

    def _shown(self, place: Place) -> list[registry_pb2.ReplicaRecord]:
        row = self._rows.get(place)
        if row is None:
            return []
        if row.shown is None:
            row.shown = list(row.records)
        return row.shown

    def _changed(self, place: Place, row: _Row) -> None:
        row.shown = None
        self._changes += 1
        self._versions[place[:2]] = self._changes


def _place(record: registry_pb2.ReplicaRecord) -> Place | None:
    """Where a replica serves; None while it does not."""
    if record.state != registry_pb2.REPLICA_STATE_READY:
        return None
    part = record.partition
    return record.model, record.revision, record.stages, record.stage, part.first_layer, part.end_layer
