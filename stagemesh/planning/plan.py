"""A plan in layers, names and plain units. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagemesh.errors import FailedPrecondition

from .fleet import Links, Node
from .goal import Goal
from .problem import Problem, Stages, build
from .shape import ModelShape
from .solve import Solution, solve

__all__ = ["Plan", "PlannedStage", "make_plan", "named"]


@dataclass(frozen=True)
class PlannedStage:
    """Layers [first_layer, end_layer) on these nodes, each of which holds one replica."""

    first_layer: int
    end_layer: int
    nodes: tuple[str, ...]
    # Of all its nodes together.
    tokens_per_s: float
    # Of the slowest of them, in milliseconds.
    pass_ms: float
    # As stored in the checkpoint.
    parameter_bytes: int


@dataclass(frozen=True)
class Plan:
    """`bound`: tokens per second that no plan exceeds; `optimal`: no plan is better by the goal."""

    stages: tuple[PlannedStage, ...]
    tokens_per_s: float
    latency_ms: float
    optimal: bool
    bound: float
    unused: tuple[str, ...]
    # What it was made from, for explanations.
    problem: Problem
    chosen: Stages

    @property
    def bottleneck(self) -> int:
        """Index of the slowest stage."""
        return min(range(len(self.stages)), key=lambda nth: self.stages[nth].tokens_per_s)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; rates are tokens per second, times milliseconds."""
        return {
            "model": self.problem.shape.name,
            "layers": self.problem.shape.layers,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "latency_ms": round(self.latency_ms, 4),
            "optimal": self.optimal,
            "no_plan_exceeds_tokens_per_s": round(self.bound, 3),
            "bottleneck": self.bottleneck,
            "stages": [
                {
                    "layers": [stage.first_layer, stage.end_layer],
                    "nodes": list(stage.nodes),
                    "replicas": len(stage.nodes),
                    "tokens_per_s": round(stage.tokens_per_s, 3),
                    "busy": round(self.tokens_per_s / stage.tokens_per_s, 4),
                    "pass_ms": round(stage.pass_ms, 4),
                    "parameter_bytes": stage.parameter_bytes,
                }
                for stage in self.stages
            ],
            "unused": list(self.unused),
        }


def make_plan(shape: ModelShape, nodes: Sequence[Node], links: Links, goal: Goal) -> Plan:
    """The best plan.

    Raises:
        InvalidArgument: no node is allowed, or a pin is of layers that are not there.
        FailedPrecondition: there is no plan, with the numbers.
    """
    problem = build(shape, nodes, links, goal)
    found = solve(problem)
    if not found.stages:
        raise FailedPrecondition(f"no plan: {found.why}")
    return named(problem, found)


def named(problem: Problem, found: Solution) -> Plan:
    """The solution with layers and nodes by name."""
    left = [[node.name for node in one.nodes] for one in problem.classes]
    stages = []
    for stage in found.stages:
        names: list[str] = []
        for one, count in enumerate(stage.counts):
            names += left[one][:count]
            del left[one][:count]
        first, end = problem.ends[stage.first], problem.ends[stage.end]
        stages.append(
            PlannedStage(
                first_layer=first,
                end_layer=end,
                nodes=tuple(names),
                tokens_per_s=problem.rate(stage),
                pass_ms=problem.pass_s(stage) * 1e3,
                parameter_bytes=problem.shape.held_bytes(first, end),
            )
        )
    return Plan(
        stages=tuple(stages),
        tokens_per_s=problem.throughput(found.stages),
        latency_ms=problem.latency(found.stages) * 1e3,
        optimal=found.optimal,
        bound=found.bound,
        unused=tuple(name for names in left for name in names),
        problem=problem,
        chosen=found.stages,
    )
