"""The router's view of the mesh: a table fed by what the watch on etcd says. Pure; time comes in as an argument.

Losing sight of etcd must not lose the mesh. What a new listing no longer holds, and what disappears shortly after
contact was lost and regained, stays in the table for one grace period (a lease's time to live): its owner, alive,
has that long to announce itself again. A key deleted in the middle of a healthy watch goes at once.
"""

from collections.abc import Mapping

from stagemesh import records
from stagemesh.revisions import candidate_of
from stagemesh.v1 import registry_pb2

from .ready import ReadyTable


class Membership:
    """Models, replicas, nodes and services by name.

    Records that cannot be decoded are counted in `undecodable` and ignored, whatever was known under that key
    stays.
    """

    def __init__(self, *, grace_s: float) -> None:
        self.grace_s = grace_s
        self.models: dict[str, registry_pb2.ModelSpec] = {}
        # Of the models whose rollout is under way.
        self.candidates: dict[str, registry_pb2.ModelSpec] = {}
        self.replicas: dict[str, registry_pb2.ReplicaRecord] = {}
        self.nodes: dict[str, registry_pb2.NodeRecord] = {}
        self.services: dict[str, registry_pb2.ServiceRecord] = {}
        # What the autoscaler decided, by model.
        self.scales: dict[str, registry_pb2.ScaleRecord] = {}
        self.undecodable = 0
        self.listed = False
        self.version = 0
        self._leaving: dict[str, float] = {}
        self._unsettled_until = float("-inf")
        self._table = ReadyTable()
        self._ready: dict[
            tuple[str, str], tuple[int, registry_pb2.ModelSpec, list[list[registry_pb2.ReplicaRecord]]]
        ] = {}

    def __repr__(self) -> str:
        return (
            f"Membership(models={len(self.models)}, replicas={len(self.replicas)}, nodes={len(self.nodes)}, "
            f"services={len(self.services)}, leaving={len(self._leaving)})"
        )

    def snapshot(self, items: Mapping[str, bytes], now: float) -> None:
        """Take a full listing; what it lacks leaves after the grace period (at once on the first listing)."""
        if self.listed:
            self._unsettled_until = now + self.grace_s
        self.listed = True
        for key in self._keys():
            if key not in items:
                self._leaving.setdefault(key, now + self.grace_s)
        for key, value in items.items():
            self._put(key, value)

    def change(self, key: str, value: bytes | None, now: float) -> None:
        """Take one change; `None` means deleted."""
        if value is not None:
            self._put(key, value)
        elif now < self._unsettled_until:
            self._leaving.setdefault(key, now + self.grace_s)
        else:
            self._drop(key)

    def reconnected(self, now: float) -> None:
        """Contact with etcd was lost and is back: for one grace period deletions are not believed at once."""
        self._unsettled_until = now + self.grace_s

    def expire(self, now: float) -> None:
        """Let go of what has been leaving for the whole grace period."""
        for key in [key for key, at in self._leaving.items() if at <= now]:
            self._drop(key)

    def ready(self, spec: registry_pb2.ModelSpec) -> list[list[registry_pb2.ReplicaRecord]]:
        """Per stage of `spec`, the ready replicas that hold exactly its partition of its revision, by id.

        The lists are kept until something changes in their stage; they are not to be written to.
        """
        key = spec.name, spec.revision
        version = self._table.version(*key)
        known = self._ready.get(key)
        # A session keeps the spec with which it began, of which there may be a newer copy.
        if (
            known is not None
            and known[0] == version
            and (known[1] is spec or known[1].partitions == spec.partitions)
        ):
            return known[2]
        stages = self._table.stages(spec)
        self._ready[key] = version, spec, stages
        return stages

    def is_ready(self, spec: registry_pb2.ModelSpec) -> bool:
        """Whether every stage has a ready replica."""
        stages = self.ready(spec)
        return bool(stages) and all(stages)

    def asleep(self, spec: registry_pb2.ModelSpec) -> bool:
        """Whether it has no replicas because nobody asked for it for a while; the next request wakes it."""
        if not spec.HasField("scaling") or spec.scaling.min_replicas:
            return False
        decided = self.scales.get(spec.name)
        return decided is not None and not any(decided.replicas)

    def services_of(self, kind: str) -> list[registry_pb2.ServiceRecord]:
        """Services of a kind ("cache", "registry", "router"), by id."""
        return [record for _, record in sorted(self.services.items()) if record.kind == kind]

    def addresses(self) -> set[str]:
        """Every address that this router may dial."""
        replicas = {record.address for record in self.replicas.values()}
        # Channels to nodes outlive their replicas: a model that wakes there need not connect again.
        nodes = {record.address for record in self.nodes.values()}
        return replicas | nodes | {record.address for record in self.services.values()}

    def _keys(self) -> list[str]:
        return [
            *(records.MODELS + name for name in self.models),
            *(records.REPLICAS + name for name in self.replicas),
            *(records.NODES + name for name in self.nodes),
            *(records.SERVICES + name for name in self.services),
            *(records.SCALES + name for name in self.scales),
        ]

    def _put(self, key: str, value: bytes) -> None:
        self._leaving.pop(key, None)
        self.version += 1
        try:
            if key.startswith(records.MODELS):
                self._put_model(
                    key.removeprefix(records.MODELS), records.from_json(value, registry_pb2.ModelSpec)
                )
            elif key.startswith(records.REPLICAS):
                name = key.removeprefix(records.REPLICAS)
                self.replicas[name] = replica = records.from_json(value, registry_pb2.ReplicaRecord)
                self._table.put(name, replica)
            elif key.startswith(records.NODES):
                self.nodes[key.removeprefix(records.NODES)] = records.from_json(
                    value, registry_pb2.NodeRecord
                )
            elif key.startswith(records.SERVICES):
                name = key.removeprefix(records.SERVICES)
                self.services[name] = records.from_json(value, registry_pb2.ServiceRecord)
            elif key.startswith(records.SCALES):
                self.scales[key.removeprefix(records.SCALES)] = records.from_json(
                    value, registry_pb2.ScaleRecord
                )
        except ValueError:
            self.undecodable += 1

    def _put_model(self, name: str, spec: registry_pb2.ModelSpec) -> None:
        self.models[name] = spec
        self._forget_ready(name)
        candidate = candidate_of(spec)
        if candidate is not None:
            self.candidates[name] = candidate

    def _forget_ready(self, name: str) -> None:
        self.candidates.pop(name, None)
        for key in [key for key in self._ready if key[0] == name]:
            del self._ready[key]

    def _drop(self, key: str) -> None:
        self._leaving.pop(key, None)
        self.version += 1
        for prefix, table in (
            (records.MODELS, self.models),
            (records.REPLICAS, self.replicas),
            (records.NODES, self.nodes),
            (records.SERVICES, self.services),
            (records.SCALES, self.scales),
        ):
            if key.startswith(prefix):
                table.pop(key.removeprefix(prefix), None)  # type: ignore[attr-defined]
        if key.startswith(records.MODELS):
            self._forget_ready(key.removeprefix(records.MODELS))
        elif key.startswith(records.REPLICAS):
            self._table.drop(key.removeprefix(records.REPLICAS))
