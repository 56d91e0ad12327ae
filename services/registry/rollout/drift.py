"""Whether other cuts of a deployed model pay, by what its nodes measure. Pure; time comes in as an argument.

The planner is asked for the best cuts in as many stages, beside what runs, and what the present cuts give is worked out by the
same measurements. Profiles say how fast a node is alone; how slow it is now, because others use the machine too, is told by
its passes: all stages pass the same rows, so their measured times differ from the profiles' by the same factor, but for the
nodes that have drifted.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import FailedPrecondition
from stagemesh.planning import Goal, Links, ModelShape, Node, Problem, build
from stagemesh.planning.live import from_records, links_from
from stagemesh.planning.plan import Plan, make_plan
from stagemesh.planning.profile import shape_of
from stagemesh.v1.registry_pb2 import Assignment, ModelSpec, PlacementPlan

from ..board import Board
from ..planned import goal_of
from ..world import World, is_current

MOST_DRIFT = 8.0
_DISK_GBPS = 0.2
_START_S = 2.0


@dataclass(frozen=True)
class Patience:
    """When a gain is worth a move.

    Attributes:
        least_gain: smaller ones lie within what measurements differ by.
        horizon_s: for how long the mesh is expected to stay as it is.
        risk_s: seconds of the present throughput that a move is reckoned to cost besides loading.
        loading_loss: share of the throughput that is lost while partitions load on the same machines.
        settle_s: for how long it must pay, each time it is looked at.
        cooldown_s: from the end of one rollout to the next move; ten times as long after one that was taken back.
    """

    least_gain: float = 0.15
    horizon_s: float = 3600.0
    risk_s: float = 30.0
    loading_loss: float = 0.5
    settle_s: float = 60.0
    cooldown_s: float = 600.0


@dataclass(frozen=True)
class Weighed:
    """`gain` is the ratio of what the plan gives to what the present cuts give, less 1; `reason` one line."""

    plan: Plan
    gain: float
    present_tokens_per_s: float
    pays: bool
    reason: str

    @property
    def cuts(self) -> list[tuple[int, int]]:
        """Half-open layer ranges of the plan."""
        return [(stage.first_layer, stage.end_layer) for stage in self.plan.stages]


def weigh(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    world: World,
    pass_ms: Mapping[str, float],
    busy: float,
    patience: Patience,
) -> Weighed:
    """Compare the present cuts with the best in as many stages.

    Args:
        spec: what is deployed.
        checkpoint: of the same weights.
        world: the records.
        pass_ms: milliseconds of a pass, by replica, as far as they are known.
        busy: how busy the busiest stage is, 0..1: a faster pipeline brings no more than is asked of it.
        patience: when it pays.

    Raises `FailedPrecondition` when a stage has no replica, or there is no plan beside what runs.
    """
    wish = PlacementPlan()
    wish.CopyFrom(spec.plan)
    wish.fixed_stages = len(spec.partitions)
    goal = goal_of(wish, spec.zones, checkpoint.layers)
    shape = ModelShape.of(checkpoint, spec.name, spec.dtype)
    records = list(world.nodes.values())
    links = links_from(records)
    nodes, _ = from_records(records, shape_of(checkpoint, spec.dtype))
    held = [one for one in world.assignments.values() if one.model == spec.name and is_current(spec, one)]
    nodes = drifted(shape, nodes, links, goal, held, pass_ms)
    board = Board(world)
    free = [
        replace(node, memory_bytes=left)
        for node in nodes
        if (left := node.memory_bytes - board.used_bytes(world.nodes[node.name])) > 0
    ]
    if not free:
        raise FailedPrecondition("no plan: all memory is taken, and a move needs room beside what runs")
    present = present_of(shape, nodes, links, goal, spec, held)
    best = make_plan(shape, free, links, goal)
    if goal.objective == "latency":
        gain = present.latency_ms / best.latency_ms - 1
        told = f"{best.latency_ms:.3g} ms a token instead of {present.latency_ms:.3g}"
    else:
        gain = best.tokens_per_s / present.tokens_per_s - 1
        told = f"{best.tokens_per_s:.3g} tokens/s instead of {present.tokens_per_s:.3g}"
    load_s = _load_s(best, world)
    won_s = gain * patience.horizon_s * (1.0 if goal.objective == "latency" else busy)
    cost_s = patience.loading_loss * load_s + patience.risk_s
    cuts = [(stage.first_layer, stage.end_layer) for stage in best.stages]
    if cuts == [(one.first_layer, one.end_layer) for one in spec.partitions]:
        pays, verdict = False, "the cuts are the best already"
    elif gain < patience.least_gain:
        pays, verdict = False, f"less than the {patience.least_gain:.0%} that is worth a move"
    elif won_s <= cost_s:
        pays, verdict = (
            False,
            f"at this load it wins {won_s:.0f} s in {patience.horizon_s:.0f}, and costs {cost_s:.0f} s",
        )
    else:
        pays, verdict = True, f"it wins {won_s:.0f} s in {patience.horizon_s:.0f}, and costs {cost_s:.0f} s"
    reason = f"cuts {_words(cuts)}: {told} ({gain:+.0%}); {verdict}"
    return Weighed(best, gain, present.tokens_per_s, pays, reason)


@dataclass(frozen=True)
class Present:
    """What the present cuts give where they are."""

    tokens_per_s: float
    latency_ms: float


def present_of(
    shape: ModelShape,
    nodes: Sequence[Node],
    links: Links,
    goal: Goal,
    spec: ModelSpec,
    held: Sequence[Assignment],
) -> Present:
    """By the same definition as a plan's; replicas of the model on one node share it."""
    problem = build(shape, [replace(node, memory_bytes=2**62) for node in nodes], links, _anywhere(goal))
    index = {node.name: one for one, group in enumerate(problem.classes) for node in group.nodes}
    on_node: dict[str, int] = {}
    for assignment in held:
        on_node[assignment.node_id] = on_node.get(assignment.node_id, 0) + 1
    slowest, latency_s, zones = float("inf"), 0.0, []
    for stage, partition in enumerate(spec.partitions):
        first, end = problem.ends.index(partition.first_layer), problem.ends.index(partition.end_layer)
        hosts = [one.node_id for one in held if one.stage == stage and one.node_id in index]
        if not hosts:
            raise FailedPrecondition(f"stage {stage} has no replica on a node that is known")
        rates = [
            problem.goal.batch / float(problem.busy[index[name], first, end]) / on_node[name]
            for name in hosts
        ]
        slowest = min(slowest, sum(rates))
        latency_s += max(float(problem.time[index[name], first, end]) for name in hosts)
        zones.append({problem.zone_of[index[name]] for name in hosts})
    for one, other in itertools.pairwise(zones):
        latency_s += max(float(problem.hop[a, b]) for a in one for b in other)
    if len(zones) > 1:
        latency_s += max(float(problem.back[a, b]) for a in zones[-1] for b in zones[0])
    return Present(slowest, latency_s * 1e3)


def drifted(
    shape: ModelShape,
    nodes: Sequence[Node],
    links: Links,
    goal: Goal,
    held: Sequence[Assignment],
    pass_ms: Mapping[str, float],
) -> list[Node]:
    """The nodes, slower or faster by what their passes took beside what their profiles say, and beside the others."""
    problem = build(shape, [replace(node, memory_bytes=2**62) for node in nodes], links, _anywhere(goal))
    index = {node.name: one for one, group in enumerate(problem.classes) for node in group.nodes}
    ratios: dict[str, float] = {}
    for one in held:
        measured = pass_ms.get(one.replica_id, 0.0)
        if measured > 0 and one.node_id in index:
            ratio = measured / 1e3 / _expected_s(problem, index[one.node_id], one)
            ratios[one.node_id] = max(ratio, ratios.get(one.node_id, 0.0))
    if len(ratios) < 2:
        return list(nodes)  # nothing to compare with: the number of rows is not known
    usual = median(sorted(ratios.values())[: (len(ratios) + 1) // 2])
    return [
        replace(
            node, speed=node.speed.slower(min(MOST_DRIFT, max(1 / MOST_DRIFT, ratios[node.name] / usual)))
        )
        if node.name in ratios
        else node
        for node in nodes
    ]


class Moves:
    """For how long a move has paid, by model: a gain that comes and goes moves nothing."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since: dict[str, float] = {}

    def due(self, spec: ModelSpec, weighed: Weighed | None, now: float, now_ms: int) -> bool:
        """Whether to move now; None: it could not be weighed. `now` is monotonic, `now_ms` Unix time, as the record has it."""
        if weighed is None or not weighed.pays or self.cools_down(spec, now_ms):
            self._since.pop(spec.name, None)
            return False
        since = self._since.setdefault(spec.name, now)
        return now - since >= self._patience.settle_s

    def cools_down(self, spec: ModelSpec, now_ms: int) -> bool:
        """Whether the last rollout ended too short a time ago; the record says so to every leader."""
        if not spec.HasField("rollout"):
            return False
        bad = spec.rollout.kind == "recut" and spec.revision != spec.rollout.to_revision
        wait_s = self._patience.cooldown_s * (10 if bad else 1)
        return now_ms - spec.rollout.step_unix_ms < wait_s * 1000


def _expected_s(problem: Problem, one: int, held: Assignment) -> float:
    first = problem.ends.index(held.partition.first_layer)
    end = problem.ends.index(held.partition.end_layer)
    return float(problem.time[one, first, end])


def _anywhere(goal: Goal) -> Goal:
    """What runs is where it is, whatever is wanted now."""
    return replace(goal, zones=(), labels={}, pins=())


def _load_s(plan: Plan, world: World) -> float:
    return _START_S + max(
        stage.parameter_bytes / ((world.nodes[name].disk_gbps or _DISK_GBPS) * 1e9)
        for stage in plan.stages
        for name in stage.nodes
    )


def _words(cuts: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{first}-{end - 1}" for first, end in cuts)
