"""Whether a model fits before it is deployed: the placement of the controller, tried on what is there now. Pure.

One replica of every stage has to find a node; further ones may wait for nodes that join. A model that may sleep
needs room only when it wakes, so it only has to fit the nodes as they were empty. Where a node pool may still bring enough, or no
node is known, so that nobody can say, it waits.
"""

from collections import Counter
from dataclasses import replace
from random import Random

from stagemesh.errors import FailedPrecondition, ResourceExhausted
from stagemesh.revisions import specs_of
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec

from .assign import Patience, decide
from .board import Assign, Board
from .growth import grown
from .placement import in_zones
from .world import History, World, bytes_needed, is_current

_NODES = 8
"""Nodes, with the most free first, and models that a refusal names."""
_GIB = 2**30


def check_room(world: World, spec: ModelSpec, most_nodes: int = 0) -> str:
    """Raise when the record `spec`, or the candidate in it, finds no room beside what `world` holds, nor on nodes that may come.

    Args:
        world: the records.
        spec: as it will be written.
        most_nodes: how many nodes there may be, where somebody starts more when they are needed.

    Returns:
        Why it waits for nodes, with the numbers; empty when it need not.

    Raises:
        FailedPrecondition: the nodes are too small for it, whatever else they hold and however many come.
        ResourceExhausted: it would fit, but for what others hold.
    """
    here = len(Board(world).usable_nodes())
    if not here:
        return ""
    one = _one_copy(spec)
    empty = World(models={spec.name: _latest(one)}, nodes=world.nodes, assignments={}, replicas={})
    if _lacking(empty, one) and _lacking(grown(empty, _latest(one), most_nodes), one):
        raise FailedPrecondition(
            f"{_needs(one, world)}, which the nodes are too small for: {_free(empty, one)}"
            + _limit(here, most_nodes)
        )
    if spec.HasField("scaling") and not spec.scaling.min_replicas:
        return ""
    settled = _settled(world)
    others = {model: record for model, record in settled.scales.items() if model != spec.name}
    settled = replace(settled, models={**settled.models, spec.name: one}, scales=others)
    if not _lacking(settled, one):
        return ""
    if not _lacking(grown(settled, _latest(one), most_nodes), one):
        return (
            f"{_needs(one, world)}, and waits for nodes: {_free(settled, one)}; {_held(settled, spec.name)}"
            + _limit(here, most_nodes)
        )
    raise ResourceExhausted(
        f"{_needs(one, world)}, for which there is no room: {_free(settled, one)}; {_held(settled, spec.name)}"
        f"{_limit(here, most_nodes)}. "
        "Undeploy or scale down something, add a node, or let it wait for one (allow_pending)"
    )


def _limit(here: int, most_nodes: int) -> str:
    """How far the node pool may still grow; nothing where there is none."""
    return f"; {here} nodes are there, {most_nodes} at most" if most_nodes > 1 else ""


def _one_copy(spec: ModelSpec) -> ModelSpec:
    """The record with one replica of each stage, awake."""
    one = ModelSpec()
    one.CopyFrom(spec)
    for each in specs_of(one):
        each.ClearField("scaling")
        each.replicas[:] = [1] * len(each.partitions)
    return one


def _latest(spec: ModelSpec) -> ModelSpec:
    """What is asked for: the candidate, or what is deployed."""
    latest = ModelSpec()
    latest.CopyFrom(specs_of(spec)[-1])
    latest.ClearField("rollout")
    return latest


def _settled(world: World) -> World:
    """The world once everything that is wanted by now is where it will be, and what is on its way elsewhere is there."""
    plan = decide(world, History(), Patience(), 0.0, Random(0))
    held = dict(world.assignments)
    for decision in plan.decisions:
        if isinstance(decision, Assign):
            held[decision.assignment.replica_id] = decision.assignment
        else:
            held.pop(decision.replica_id, None)
    crowd = Counter(each.node_id for each in held.values())
    for spec in world.specs():
        for stage in range(len(spec.partitions)):
            of = sorted(
                (each for each in held.values() if each.stage == stage and _of(spec, each)),
                key=lambda each: (each.node_id not in world.nodes, crowd[each.node_id], each.replica_id),
            )
            # One more than is wanted stands in for another, which goes from where there are most.
            for each in of[world.wanted(spec, stage) :]:
                del held[each.replica_id]
                crowd[each.node_id] -= 1
    return replace(world, assignments=held)


def _lacking(world: World, spec: ModelSpec) -> list[int]:
    """Stages of what is asked for that find no node."""
    latest = _latest(spec)
    there = {held.stage for held in _settled(world).assignments.values() if _of(latest, held)}
    return [stage for stage in range(len(latest.partitions)) if stage not in there]


def _of(spec: ModelSpec, held: Assignment) -> bool:
    return held.model == spec.name and is_current(spec, held)


def _needs(spec: ModelSpec, world: World) -> str:
    latest = _latest(spec)
    nodes = Board(world).usable_nodes()
    needs = [min(bytes_needed(latest, part, node) for node in nodes) for part in latest.partitions]
    if len(needs) == 1:
        return f"model {spec.name!r} needs {_bytes(needs[0])} on one node"
    return f"model {spec.name!r} needs {', '.join(map(_bytes, needs))} for its {len(needs)} stages"


def _free(world: World, spec: ModelSpec) -> str:
    """Bytes free on each node where it may be, without the model itself."""
    board = Board(
        replace(world, assignments={k: v for k, v in world.assignments.items() if not _of(_latest(spec), v)})
    )
    latest = _latest(spec)
    nodes = sorted(
        (node for node in board.usable_nodes() if in_zones(latest, node)),
        key=lambda node: (-board.free_bytes(node), node.node_id),
    )
    if not nodes:
        return f"none of {len(board.usable_nodes())} nodes is where it may be"
    lines = [
        f"{node.node_id} has {_bytes(max(0, board.free_bytes(node)))} of {_bytes(node.memory_bytes)} free"
        for node in nodes[:_NODES]
    ]
    more = f", and {len(nodes) - _NODES} nodes with less" if len(nodes) > _NODES else ""
    return ", ".join(lines) + more


def _held(world: World, name: str) -> str:
    """Who holds how much on all nodes, without the model's wanted partitions."""
    held: Counter[str] = Counter()
    sessions: Counter[str] = Counter()
    for each in world.assignments.values():
        node = world.nodes.get(each.node_id)
        if node is not None:
            key = f"{each.model} (the revision that serves)" if each.model == name else each.model
            held[key] += world.reserved_bytes(each, node)
            sessions[key] += world.session_bytes(each)
    most = sorted(held.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"{model} {_bytes(amount)}" + (f", {sessions[model]} of them for sessions" if sessions[model] else "")
        for model, amount in most[:_NODES]
    ]
    return "held by " + (
        "; ".join(lines) + ("; and others" if len(most) > _NODES else "") if lines else "nobody"
    )


def _bytes(amount: int) -> str:
    return f"{amount} bytes ({amount / _GIB:.2f} GiB)" if amount >= _GIB // 100 else f"{amount} bytes"
