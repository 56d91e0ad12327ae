"""Where one replica can go, and why it can go nowhere. Pure."""

from collections.abc import Callable
from random import Random

import numpy as np

from stagemesh.planning.pins import layers_of
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, NodeRecord

from .board import Board
from .world import History, bytes_needed, is_current


def choose_node(
    board: Board,
    history: History,
    spec: ModelSpec,
    stage: int,
    suits: Callable[[NodeRecord], bool] | None = None,
) -> NodeRecord | None:
    """The best node with room: without this stage, without failures of it, planned for it, one that has its partition loaded still,
    least filled, fewest partitions.
    """
    staying, _ = current_of(board, spec, stage)
    rooms, partition = board.rooms, spec.partitions[stage]
    needs = rooms.needs(lambda node: bytes_needed(spec, partition, node))
    places = rooms.fitting(needs)
    if suits is not None or spec.zones or spec.HasField("plan"):
        picked = [
            place
            for place in places
            if allowed(spec, stage, rooms.nodes[place]) and (suits is None or suits(rooms.nodes[place]))
        ]
        places = np.array(picked, dtype=np.intp)
    return rooms.best(
        places,
        needs,
        there=[held.node_id for held in staying],
        failures=history.failures.get((spec.name, spec.revision, stage), {}),
        planned=planned_nodes(spec, stage),
        keeps=kept_as(spec, stage),
    )


def keeps(node: NodeRecord, spec: ModelSpec, stage: int) -> bool:
    """Whether the node has kept the stage's partition, and would serve it at once."""
    wanted = kept_as(spec, stage)
    return any(
        (kept.checkpoint, kept.dtype, kept.first_layer, kept.end_layer) == wanted for kept in node.keeps
    )


def kept_as(spec: ModelSpec, stage: int) -> tuple[str, str, int, int]:
    """By what nodes know a stage's partition that they have kept: checkpoint, dtype, layers."""
    layers = spec.partitions[stage]
    return spec.revision.partition("-")[0], spec.dtype, layers.first_layer, layers.end_layer


def fits(board: Board, spec: ModelSpec, stage: int, node: NodeRecord) -> bool:
    """Whether the node is where the model may be, and has room for the stage's partition."""
    if not allowed(spec, stage, node):
        return False
    need = bytes_needed(spec, spec.partitions[stage], node)
    return node.memory_bytes > 0 and board.free_bytes(node) >= need


def in_zones(spec: ModelSpec, node: NodeRecord) -> bool:
    """Whether the model may be placed there."""
    return not spec.zones or node.zone in spec.zones


def allowed(spec: ModelSpec, stage: int, node: NodeRecord) -> bool:
    """Whether the stage may be placed there: zones, and the labels and pins that the planner was given."""
    if not in_zones(spec, node):
        return False
    if any(node.labels.get(key) != value for key, value in spec.plan.node_labels.items()):
        return False
    partition = spec.partitions[stage]
    for pin in spec.plan.pins:
        first, end = layers_of(pin.layers, spec.partitions[-1].end_layer)
        if first < partition.end_layer and partition.first_layer < end:
            placed = (not pin.zone or node.zone == pin.zone) and (not pin.nodes or node.node_id in pin.nodes)
            if not placed or any(node.labels.get(key) != value for key, value in pin.node_labels.items()):
                return False
    return True


def planned_nodes(spec: ModelSpec, stage: int) -> frozenset[str]:
    """Where the planner put the stage; empty without a plan."""
    return frozenset(spec.plan.stages[stage].nodes) if stage < len(spec.plan.stages) else frozenset()


def current_of(board: Board, spec: ModelSpec, stage: int) -> tuple[list[Assignment], list[Assignment]]:
    """Assignments of the wanted partition: those that stay, and those on nodes that drain or where it may not be."""
    staying: list[Assignment] = []
    leaving: list[Assignment] = []
    for held in board.of(spec.name, stage):
        if is_current(spec, held):
            node = board.world.nodes.get(held.node_id)
            leaves = node is not None and (node.draining or not allowed(spec, stage, node))
            (leaving if leaves else staying).append(held)
    return staying, leaving


def stale_of(board: Board, spec: ModelSpec) -> list[Assignment]:
    """The model's assignments that nothing wants: of older revisions, other cuts, or a candidate taken back."""
    return [held for held in board.of(spec.name) if board.world.spec_of(held) is None]


def new_assignment(
    spec: ModelSpec, stage: int, node: NodeRecord, rng: Random, traceparent: str = ""
) -> Assignment:
    """A fresh replica of the stage on the node; `traceparent`: of the request that it is for."""
    return Assignment(
        replica_id=f"{spec.name}-{stage}-{rng.getrandbits(32):08x}",
        node_id=node.node_id,
        model=spec.name,
        stage=stage,
        stages=len(spec.partitions),
        partition=spec.partitions[stage],
        generation=spec.generation,
        revision=spec.revision,
        traceparent=traceparent,
    )


def why_not(board: Board, spec: ModelSpec, stage: int, nth: int) -> str:
    """One line, with the numbers, on why the nth replica (from 0) has no node."""
    head = f"stage {stage}, replica {nth + 1} of {board.world.wanted(spec, stage)}"
    nodes = board.usable_nodes()
    if not nodes:
        draining = f" ({len(board.world.nodes)} draining)" if board.world.nodes else ""
        return f"{head}: no node is there{draining}"
    elsewhere = len(nodes)
    nodes = [node for node in nodes if in_zones(spec, node)]
    if not nodes:
        return f"{head}: none of {elsewhere} nodes is in {' or '.join(spec.zones)}"
    best = max(nodes, key=board.free_bytes)
    need = bytes_needed(spec, spec.partitions[stage], best)
    stale = "; the older revision, which still serves, holds a part" if stale_of(board, spec) else ""
    return (
        f"{head}: needs {need} bytes, the most that one of {len(nodes)} nodes has free is "
        f"{max(0, board.free_bytes(best))} of {best.memory_bytes} ({best.node_id}){stale}"
    )
