"""Who holds what while a plan is made: memory and partitions per node, changed as decisions are taken. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord

from .world import World, bytes_needed


@dataclass(frozen=True)
class Assign:
    """Tell a node to load a partition."""

    assignment: Assignment
    reason: str


@dataclass(frozen=True)
class Unassign:
    """Take a partition from a node."""

    node_id: str
    replica_id: str
    reason: str


Decision = Assign | Unassign


class Board:
    """The assignments as they will be after the decisions taken so far."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held = dict(world.assignments)
        self.decisions: list[Decision] = []

    def assign(self, assignment: Assignment, reason: str) -> None:
        """Decide to load a partition."""
        self.held[assignment.replica_id] = assignment
        self.decisions.append(Assign(assignment, reason))

    def unassign(self, assignment: Assignment, reason: str) -> None:
        """Decide to take a partition away; its memory counts as free from now on."""
        del self.held[assignment.replica_id]
        self.decisions.append(Unassign(assignment.node_id, assignment.replica_id, reason))

    def of(self, model: str, stage: int | None = None) -> list[Assignment]:
        """The assignments of a model, or of one of its stages, ordered by replica id."""
        found = (held for held in self.held.values() if held.model == model)
        return sorted(
            (held for held in found if stage is None or held.stage == stage), key=lambda held: held.replica_id
        )

    def on(self, node_id: str) -> list[Assignment]:
        """The assignments of a node."""
        return [held for held in self.held.values() if held.node_id == node_id]

    def used_bytes(self, node: NodeRecord) -> int:
        """Memory set aside on a node."""
        return sum(self.needed_bytes(held, node) for held in self.on(node.node_id))

    def needed_bytes(self, held: Assignment, node: NodeRecord) -> int:
        """Memory set aside for one assignment on a node."""
        return bytes_needed(self.world.models.get(held.model, ModelSpec()), held.partition, node)

    def free_bytes(self, node: NodeRecord) -> int:
        """Memory not set aside on a node."""
        return node.memory_bytes - self.used_bytes(node)

    def usable_nodes(self) -> list[NodeRecord]:
        """Nodes that take new partitions, ordered by id."""
        nodes = (node for _, node in sorted(self.world.nodes.items()))
        return [node for node in nodes if not node.draining]


def count_on(node_id: str, assignments: Iterable[Assignment]) -> int:
    """How many of the assignments are on the node."""
    return sum(assignment.node_id == node_id for assignment in assignments)
