"""The records as the autoscaler sees them: who is ready, which nodes hold what, what has no room. Pure."""

from collections import Counter, defaultdict
from collections.abc import Callable

from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec

from .placement import in_zones
from .scaling.packing import Allowed, Box, Piece
from .world import History, World, bytes_needed, is_current


class View:
    """One look at a world, each part made once.

    Attributes:
        ready: by model, ids of the replicas that serve, of each stage.
        have: by model, assignments of the wanted revision, of each stage.
        settled: every replica that is wanted serves, no other one is there, and no rollout is under way.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.ready: dict[str, list[list[str]]] = {}
        self.have: dict[str, list[int]] = {}
        for name, spec in world.models.items():
            self.ready[name] = [[] for _ in spec.partitions]
            self.have[name] = [0] * len(spec.partitions)
        # By model, revision and stage, of what is deployed and of candidates.
        self._placed: Counter[tuple[str, str, int]] = Counter()
        strays = 0
        for held in world.assignments.values():
            if (wanted := world.spec_of(held)) is not None:
                self._placed[held.model, wanted.revision, held.stage] += 1
            of_model = world.models.get(held.model)
            if of_model is None or not is_current(of_model, held):
                strays += 1
                continue
            self.have[held.model][held.stage] += 1
            if world.ready(held):
                self.ready[held.model][held.stage].append(held.replica_id)
        self.settled = not strays and all(map(self._is_settled, world.models.values()))

    def wanted(self, spec: ModelSpec) -> list[int]:
        """Replicas wanted of each stage."""
        return [self.world.wanted(spec, stage) for stage in range(len(spec.partitions))]

    def _is_settled(self, spec: ModelSpec) -> bool:
        wanted = self.wanted(spec)
        ready = [len(each) for each in self.ready[spec.name]]
        return not rolls_out(spec) and wanted == ready == self.have[spec.name]

    def boxes(self, busy_of: Callable[[str], float]) -> list[Box]:
        """The nodes that take partitions, with what they hold."""
        on_node: defaultdict[str, list[Assignment]] = defaultdict(list)
        for held in self.world.assignments.values():
            on_node[held.node_id].append(held)
        boxes: list[Box] = []
        for node_id, node in sorted(self.world.nodes.items()):
            if node.draining:
                continue
            pieces = []
            for held in on_node[node_id]:
                spec = self.world.models.get(held.model, ModelSpec())
                movable = spec.HasField("scaling") and self.world.ready(held)
                nbytes = bytes_needed(spec, held.partition, node)
                busy = busy_of(held.replica_id)
                pieces.append(Piece(held.replica_id, held.model, held.stage, nbytes, busy, movable))
            free = node.memory_bytes - sum(self.world.reserved_bytes(held, node) for held in on_node[node_id])
            busy = sum(piece.busy for piece in pieces)
            boxes.append(Box(node_id, node.memory_bytes, tuple(pieces), free, busy))
        return boxes

    def allowed(self, history: History) -> Allowed:
        """Bytes that a piece needs on a node, None where it may not be or failed before."""

        def need(piece: Piece, node_id: str) -> int | None:
            spec, node = self.world.models.get(piece.model), self.world.nodes[node_id]
            if spec is None or not in_zones(spec, node) or history.failures_at(spec, piece.stage, node_id):
                return None
            return bytes_needed(spec, spec.partitions[piece.stage], node)

        return need

    def pending(self) -> list[int]:
        """Bytes of each replica that is wanted and has no node, on a node of the kind that most are.

        Of a candidate only the first of each stage: its others take the places of what it replaces.
        """
        nodes = sorted(self.world.nodes.values(), key=lambda node: node.memory_bytes)
        usual = nodes[(len(nodes) - 1) // 2] if nodes else None
        found: list[int] = []
        for spec in self.world.specs():
            deployed = spec is self.world.models[spec.name]
            for stage, partition in enumerate(spec.partitions):
                wanted = self.world.wanted(spec, stage)
                need = partition.parameter_bytes if usual is None else bytes_needed(spec, partition, usual)
                have = self._placed[spec.name, spec.revision, stage]
                found += [need] * ((wanted if deployed else min(wanted, 1)) - have)
        return found
