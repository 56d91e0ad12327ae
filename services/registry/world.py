"""What the controller knows: the records in etcd, and when it first saw what it must be patient about. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from stagemesh.revisions import spec_of, specs_of
from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_FAILED,
    REPLICA_STATE_READY,
    Assignment,
    ModelSpec,
    NodeRecord,
    Partition,
    ReplicaRecord,
    ScaleRecord,
)
from stagemesh.wanted import replicas_wanted

# A partition takes more than its parameters: activations, KV state, buffers.
HEADROOM = 1.2
_UNKNOWN = ModelSpec()
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class World:
    """The records, by name or id."""

    models: Mapping[str, ModelSpec]
    nodes: Mapping[str, NodeRecord]
    # By replica id.
    assignments: Mapping[str, Assignment]
    # By replica id.
    replicas: Mapping[str, ReplicaRecord]
    # What the autoscaler decided, by model.
    scales: Mapping[str, ScaleRecord] = field(default_factory=dict)

    def wanted(self, spec: ModelSpec, stage: int) -> int:
        """Replicas wanted of a stage now."""
        return replicas_wanted(spec, stage, self.scales.get(spec.name))

    def specs(self) -> list[ModelSpec]:
        """Every spec that has replicas, by name: what is deployed, and after it the candidate of its rollout."""
        return [one for _, spec in sorted(self.models.items()) for one in specs_of(spec)]

    def spec_of(self, assignment: Assignment) -> ModelSpec | None:
        """The spec that the assignment is of, if any wants it now."""
        model = self.models.get(assignment.model)
        found = specs_of(model) if model is not None else []
        return next((one for one in found if is_current(one, assignment)), None)

    def serves(self, spec: ModelSpec) -> bool:
        """Whether every stage has a ready replica."""
        stages = {
            held.stage
            for held in self.assignments.values()
            if held.model == spec.name and is_current(spec, held) and self.ready(held)
        }
        return bool(spec.partitions) and len(stages) == len(spec.partitions)

    def ready(self, assignment: Assignment) -> bool:
        """Whether the replica of this assignment serves."""
        return self._state(assignment) == REPLICA_STATE_READY

    def failed(self, assignment: Assignment) -> bool:
        """Whether the replica of this assignment could not be loaded."""
        return self._state(assignment) == REPLICA_STATE_FAILED

    def session_bytes(self, assignment: Assignment) -> int:
        """Memory that the replica of this assignment keeps for its sessions, as its node says; 0 until it is loaded."""
        record = self.replicas.get(assignment.replica_id)
        return 0 if record is None else record.kv_bytes_total

    def reserved_bytes(self, assignment: Assignment, node: NodeRecord) -> int:
        """Memory set aside for an assignment: what was planned, or, once it is loaded, what its node counts if that is more.

        A node gives sessions a share of what a partition leaves free, and only what is left after that to the next one.
        """
        model = self.models.get(assignment.model, _UNKNOWN)
        spec = spec_of(model, assignment.revision) or model
        planned = bytes_needed(spec, assignment.partition, node)
        kept = self.session_bytes(assignment)
        return max(planned, computed_bytes(spec, assignment.partition, node) + kept) if kept else planned

    def _state(self, assignment: Assignment) -> int:
        record = self.replicas.get(assignment.replica_id)
        return 0 if record is None else record.state


@dataclass(frozen=True)
class History:
    """Since when (seconds on the caller's clock) nodes are absent and replicas failed, and failures counted."""

    absent_since: Mapping[str, float] = field(default_factory=dict)
    failed_since: Mapping[str, float] = field(default_factory=dict)
    # (model, revision, stage) -> node -> failures there since the stage was last ready on that node.
    failures: Mapping[tuple[str, str, int], Mapping[str, int]] = field(default_factory=dict)

    def failures_at(self, spec: ModelSpec, stage: int, node_id: str) -> int:
        """How often this stage failed on this node."""
        return self.failures.get((spec.name, spec.revision, stage), {}).get(node_id, 0)

    def failures_in(self, spec: ModelSpec, stage: int) -> int:
        """How often this stage failed, on any node."""
        return sum(self.failures.get((spec.name, spec.revision, stage), {}).values())

    def failures_of(self, assignment: Assignment) -> int:
        """How often the assignment's stage failed, on any node."""
        return sum(self.failures.get(_stage_key(assignment), {}).values())


def observe(history: History, world: World, now: float) -> History:
    """The history after looking at the world at `now`."""
    absent = {
        assignment.node_id: history.absent_since.get(assignment.node_id, now)
        for assignment in world.assignments.values()
        if assignment.node_id not in world.nodes
    }
    failed: dict[str, float] = {}
    wanted = {(spec.name, spec.revision) for spec in world.specs()}
    failures = {key: dict(counts) for key, counts in history.failures.items() if key[:2] in wanted}
    for replica_id, assignment in world.assignments.items():
        key, node_id = _stage_key(assignment), assignment.node_id
        if key[:2] not in wanted:
            continue
        if world.failed(assignment):
            failed[replica_id] = history.failed_since.get(replica_id, now)
            if replica_id not in history.failed_since:
                counts = failures.setdefault(key, {})
                counts[node_id] = counts.get(node_id, 0) + 1
        elif world.ready(assignment) and key in failures:
            failures[key].pop(node_id, None)
    return History(absent, failed, failures)


def is_current(spec: ModelSpec, assignment: Assignment) -> bool:
    """Whether the assignment is of the partition that the model wants now (scaling alone changes nothing)."""
    return (
        assignment.revision == spec.revision
        and assignment.stages == len(spec.partitions)
        and assignment.stage < len(spec.partitions)
        and _layers(assignment.partition) == _layers(spec.partitions[assignment.stage])
    )


def bytes_needed(spec: ModelSpec, partition: Partition, node: NodeRecord) -> int:
    """Memory to set aside on `node` before a partition is loaded: what it computes with, and headroom."""
    return math.ceil(_computed(spec, partition, node) * HEADROOM)


def computed_bytes(spec: ModelSpec, partition: Partition, node: NodeRecord) -> int:
    """The parameters in the dtype that they are computed in on `node`."""
    return math.ceil(_computed(spec, partition, node))


def _computed(spec: ModelSpec, partition: Partition, node: NodeRecord) -> float:
    stored = _ITEM_BYTES.get(spec.checkpoint_dtype, 4)
    computed = spec.dtype or ("F32" if node.device == "cpu" else spec.checkpoint_dtype)
    return partition.parameter_bytes * (_ITEM_BYTES.get(computed, stored) / stored)


def _stage_key(assignment: Assignment) -> tuple[str, str, int]:
    return assignment.model, assignment.revision, assignment.stage


def _layers(partition: Partition) -> tuple[int, int]:
    return partition.first_layer, partition.end_layer
