"""A mesh that does as the plan says, without etcd or nodes: for tests of what is assigned."""

from collections import Counter
from random import Random

from stagemesh.services.registry.assign import Patience, Plan, decide
from stagemesh.services.registry.board import Assign
from stagemesh.services.registry.world import History, World, bytes_needed, observe

from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_READY,
    Assignment,
    ModelSpec,
    NodeRecord,
    Partition,
    ReplicaRecord,
)

PATIENCE = Patience(node_grace_s=5, failed_backoff_s=1)


def model(name: str, sizes: list[int], replicas: int = 1, revision: str = "r1") -> ModelSpec:
    partitions = [
        Partition(first_layer=stage, end_layer=stage + 1, parameter_bytes=size)
        for stage, size in enumerate(sizes)
    ]
    return ModelSpec(
        name=name,
        revision=revision,
        partitions=partitions,
        replicas=[replicas] * len(sizes),
        checkpoint_dtype="F32",
        generation=1,
    )


def node(node_id: str, memory: int = 10_000, draining: bool = False) -> NodeRecord:
    return NodeRecord(node_id=node_id, memory_bytes=memory, device="cpu", draining=draining)


class Mesh:
    """Plays etcd and the nodes: applies decisions, and loads what is assigned when told to."""

    def __init__(self, nodes: list[NodeRecord], models: list[ModelSpec]) -> None:
        self.nodes = {item.node_id: item for item in nodes}
        self.models = {item.name: item for item in models}
        self.assignments: dict[str, Assignment] = {}
        self.replicas: dict[str, ReplicaRecord] = {}
        self.history = History()
        self.now = 0.0
        self.rng = Random(1)

    def world(self) -> World:
        return World(dict(self.models), dict(self.nodes), dict(self.assignments), dict(self.replicas))

    def plan(self) -> Plan:
        self.history = observe(self.history, self.world(), self.now)
        return decide(self.world(), self.history, PATIENCE, self.now, self.rng)

    def apply(self, plan: Plan) -> None:
        for decision in plan.decisions:
            if isinstance(decision, Assign):
                assert decision.assignment.replica_id not in self.assignments
                self.assignments[decision.assignment.replica_id] = decision.assignment
            else:
                gone = self.assignments.pop(decision.replica_id)
                assert gone.node_id == decision.node_id
                self.replicas.pop(decision.replica_id, None)
        self.check_memory()

    def check_memory(self) -> None:
        for item in self.nodes.values():
            used = sum(
                bytes_needed(self.models[held.model], held.partition, item)
                for held in self.assignments.values()
                if held.node_id == item.node_id and held.model in self.models
            )
            assert used <= item.memory_bytes

    def load(self, state: int = REPLICA_STATE_READY, only: str = "") -> None:
        for replica_id, held in self.assignments.items():
            if held.node_id in self.nodes and only in ("", replica_id):
                self.replicas[replica_id] = ReplicaRecord(
                    replica_id=replica_id,
                    model=held.model,
                    stage=held.stage,
                    revision=held.revision,
                    state=state,
                )

    def settle(self) -> Plan:
        self.load()
        for _ in range(40):
            plan = self.plan()
            self.apply(plan)
            self.load()
            if not plan.decisions:
                return plan
        raise AssertionError("it does not come to rest")

    def lose(self, node_id: str) -> None:
        del self.nodes[node_id]
        for replica_id, held in self.assignments.items():
            if held.node_id == node_id:
                self.replicas.pop(replica_id, None)

    def on(self, node_id: str) -> list[tuple[str, int]]:
        return sorted(
            (held.model, held.stage) for held in self.assignments.values() if held.node_id == node_id
        )

    def counts(self) -> Counter[tuple[str, int]]:
        return Counter((held.model, held.stage) for held in self.assignments.values())
