"""Who holds what while a plan is made: memory and partitions per node, changed as decisions are taken. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from stagemesh.v1.registry_pb2 import Assignment, NodeRecord

from .rooms import Rooms
from .world import World


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
    """The assignments as they will be after the decisions taken so far.

    They are indexed by model, by stage and by node, and what a node has set aside is remembered: a plan over 10,000 nodes
    asks for each of these thousands of times.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: dict[str, Assignment] = {}
        self.decisions: list[Decision] = []
        self._of_model: defaultdict[str, dict[str, Assignment]] = defaultdict(dict)
        self._of_stage: defaultdict[tuple[str, int], dict[str, Assignment]] = defaultdict(dict)
        self._on_node: defaultdict[str, dict[str, Assignment]] = defaultdict(dict)
        self._used: dict[str, int] = {}
        self._rooms: Rooms | None = None
        for assignment in world.assignments.values():
            self._hold(assignment)

    def assign(self, assignment: Assignment, reason: str) -> None:
        """Decide to load a partition."""
        self._hold(assignment)
        self.decisions.append(Assign(assignment, reason))

    def unassign(self, assignment: Assignment, reason: str) -> None:
        """Decide to take a partition away; its memory counts as free from now on."""
        replica_id, node_id = assignment.replica_id, assignment.node_id
        del self.held[replica_id]
        del self._of_model[assignment.model][replica_id]
        del self._of_stage[assignment.model, assignment.stage][replica_id]
        del self._on_node[node_id][replica_id]
        self._changed(node_id)
        self.decisions.append(Unassign(node_id, replica_id, reason))

    def _hold(self, assignment: Assignment) -> None:
        replica_id, node_id = assignment.replica_id, assignment.node_id
        self.held[replica_id] = assignment
        self._of_model[assignment.model][replica_id] = assignment
        self._of_stage[assignment.model, assignment.stage][replica_id] = assignment
        self._on_node[node_id][replica_id] = assignment
        self._changed(node_id)

    def _changed(self, node_id: str) -> None:
        self._used.pop(node_id, None)
        node = self.world.nodes.get(node_id)
        if self._rooms is not None and node is not None:
            self._rooms.update(node_id, self.free_bytes(node), self.count(node_id))

    @property
    def rooms(self) -> Rooms:
        """The room on the nodes that take new partitions."""
        if self._rooms is None:
            self._rooms = Rooms(self._usable, self.free_bytes)
            for node in self._usable:
                self._rooms.update(node.node_id, self.free_bytes(node), self.count(node.node_id))
        return self._rooms

    def of(self, model: str, stage: int | None = None) -> list[Assignment]:
        """The assignments of a model, or of one of its stages, ordered by replica id."""
        found = self._of_model.get(model) if stage is None else self._of_stage.get((model, stage))
        return [held for _, held in sorted(found.items())] if found else []

    def on(self, node_id: str) -> list[Assignment]:
        """The assignments of a node."""
        return list(self._on_node.get(node_id, {}).values())

    def count(self, node_id: str) -> int:
        """How many assignments a node has."""
        return len(self._on_node.get(node_id, ()))

    def used_bytes(self, node: NodeRecord) -> int:
        """Memory set aside on a node."""
        used = self._used.get(node.node_id)
        if used is None:
            used = sum(self.needed_bytes(held, node) for held in self.on(node.node_id))
            self._used[node.node_id] = used
        return used

    def needed_bytes(self, held: Assignment, node: NodeRecord) -> int:
        """Memory set aside for one assignment on a node, that of its sessions with it."""
        return self.world.reserved_bytes(held, node)

    def free_bytes(self, node: NodeRecord) -> int:
        """Memory not set aside on a node."""
        return node.memory_bytes - self.used_bytes(node)

    def usable_nodes(self) -> list[NodeRecord]:
        """Nodes that take new partitions, ordered by id. The list is not to be written to."""
        return self._usable

    @cached_property
    def _usable(self) -> list[NodeRecord]:
        return [node for _, node in sorted(self.world.nodes.items()) if not node.draining]


def count_on(node_id: str, assignments: Iterable[Assignment]) -> int:
    """How many of the assignments are on the node."""
    return sum(assignment.node_id == node_id for assignment in assignments)
