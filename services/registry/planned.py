"""The planner decides where a deployment goes: cuts, replicas and nodes, from what live nodes measured. Pure.

Memory that others' partitions take is not free. What the planner said, and why, is kept in the model's record; placement
prefers its nodes, and recuts are weighed against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.planning import Goal, ModelShape, Node
from stagemesh.planning.explain import explain
from stagemesh.planning.live import from_records, links_from
from stagemesh.planning.pins import pin_of
from stagemesh.planning.plan import Plan, make_plan
from stagemesh.planning.profile import shape_of
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec, PlacementPlan, PlannedStage

from .board import Board
from .world import World

OBJECTIVES = ("throughput", "latency")
_MOST_LINES = 24
LEAST_BUSY, MOST_BUSY = 0.05, 0.875
"""Of a node's time for others: less is noise, and one that is never free still gets an eighth of it."""


@dataclass(frozen=True)
class Placed:
    """Half-open layer ranges, replicas of each, and the record of the decision."""

    cuts: tuple[tuple[int, int], ...]
    replicas: tuple[int, ...]
    record: PlacementPlan


def wish_of(request: DeployRequest) -> PlacementPlan | None:
    """What the planner is asked for; None: nothing. Raises `InvalidArgument` naming the field."""
    if not request.plan:
        for field in ("auto_recut", "node_labels", "pins"):
            if getattr(request, field):
                raise InvalidArgument(f"{field}: only with `plan`, throughput or latency", field=field)
        return None
    if request.plan not in OBJECTIVES:
        raise InvalidArgument(f"plan: {request.plan[:40]!r} is not {' or '.join(OBJECTIVES)}", field="plan")
    if request.replicas:
        raise InvalidArgument(
            "replicas: the planner decides them; leave it out with `plan`", field="replicas"
        )
    return PlacementPlan(
        objective=request.plan,
        node_labels=request.node_labels,
        pins=request.pins,
        auto_recut=request.auto_recut,
        fixed_stages=request.stages,
    )


def same_wish(one: PlacementPlan, other: PlacementPlan) -> bool:
    """Whether both ask for the same."""
    return _wish(one) == _wish(other)


def plan_deployment(
    checkpoint: Checkpoint,
    spec_name: str,
    dtype: str,
    zones: Sequence[str],
    wish: PlacementPlan,
    world: World,
    busy: Mapping[str, float] | None = None,
) -> Placed:
    """The best cuts, replicas and nodes for a model beside what runs already.

    `busy` is the share of the time that a node computes for other models, 0..1, where that is known: it counts as that much
    slower, by eight times at most.

    Raises:
        InvalidArgument: a pin of layers that are not there, or no node is allowed.
        FailedPrecondition: there is no plan, with the numbers.
    """
    shape = ModelShape.of(checkpoint, spec_name, dtype)
    goal = goal_of(wish, zones, checkpoint.layers)
    records = list(world.nodes.values())
    board = Board(world)
    taken = {record.node_id: board.used_bytes(record) for record in records}
    free, left_out = from_records(records, shape_of(checkpoint, dtype), taken)
    if not free:
        why = "; ".join(left_out) or "none has joined"
        raise FailedPrecondition(f"no plan: no node can be planned with: {why}")
    free, slowed = beside_others(free, busy or {})
    made = make_plan(shape, free, links_from(records), goal)
    return placed(made, wish, left_out, slowed)


def beside_others(nodes: Sequence[Node], busy: Mapping[str, float]) -> tuple[Sequence[Node], Sequence[str]]:
    """The nodes as slow as they are for one more model, and a line for each that is slower for that."""
    slowed, told = [], []
    for node in nodes:
        share = min(busy.get(node.name, 0.0), MOST_BUSY)
        if share < LEAST_BUSY:
            slowed.append(node)
            continue
        slowed.append(replace(node, speed=node.speed.slower(1 / (1 - share))))
        told.append(
            f"{node.name} computes {share:.0%} of the time for others, and counts as that much slower"
        )
    return slowed, told


def goal_of(wish: PlacementPlan, zones: Sequence[str], layers: int) -> Goal:
    """What the planner is to keep to."""
    kind: Literal["throughput", "latency"] = "latency" if wish.objective == "latency" else "throughput"
    return Goal(
        objective=kind,
        stages=wish.fixed_stages,
        zones=tuple(zones),
        labels=dict(wish.node_labels),
        pins=tuple(pin_of(pin, layers) for pin in wish.pins),
    )


def placed(
    made: Plan, wish: PlacementPlan, left_out: Sequence[str] = (), slowed: Sequence[str] = ()
) -> Placed:
    """The plan as the model's record keeps it."""
    record = _wish(wish)
    record.tokens_per_s, record.latency_ms, record.optimal = made.tokens_per_s, made.latency_ms, made.optimal
    for stage in made.stages:
        record.stages.append(
            PlannedStage(nodes=stage.nodes, tokens_per_s=stage.tokens_per_s, pass_ms=stage.pass_ms)
        )
    why = [line.strip() for line in explain(made).lines()]
    record.why.extend([*why, *slowed, *(f"left out {line}" for line in left_out)][:_MOST_LINES])
    cuts = tuple((stage.first_layer, stage.end_layer) for stage in made.stages)
    return Placed(cuts, tuple(len(stage.nodes) for stage in made.stages), record)


def kept(current: ModelSpec | None, wish: PlacementPlan, checkpoint: Checkpoint, dtype: str) -> Placed | None:
    """What is deployed, where the same was asked of the planner for the same weights: asking again changes nothing."""
    if (
        current is None
        or not current.HasField("plan")
        or not same_wish(current.plan, wish)
        or current.revision.partition("-")[0] != checkpoint.revision
        or current.dtype != dtype
    ):
        return None
    cuts = tuple((one.first_layer, one.end_layer) for one in current.partitions)
    return Placed(cuts, tuple(current.replicas), current.plan)


def _wish(plan: PlacementPlan) -> PlacementPlan:
    return PlacementPlan(
        objective=plan.objective,
        node_labels=plan.node_labels,
        pins=plan.pins,
        auto_recut=plan.auto_recut,
        fixed_stages=plan.fixed_stages,
    )
