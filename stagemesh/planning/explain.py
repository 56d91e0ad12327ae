"""Why a plan is as it is: its bottleneck, what one more node would bring, why each cut, what simpler splits give. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .baselines import BASELINES
from .plan import Plan
from .problem import Problem, Stage, Stages
from .solve import solve

__all__ = ["Explanation", "explain"]

# Kinds of nodes that "one more" is worked out for: each is a plan of its own.
_KINDS = 6
_KINDS_OF_MANY = 3
_MANY_NODES = 64


@dataclass(frozen=True)
class Explanation:
    """Lines for a reader, by subject."""

    bottleneck: list[str]
    one_more: list[str]
    cuts: list[str]
    latency: list[str]
    unused: list[str]
    compared: list[str]

    def lines(self) -> Iterator[str]:
        """All, with headings."""
        for title, found in (
            ("bottleneck", self.bottleneck),
            ("one more node", self.one_more),
            ("cuts", self.cuts),
            ("latency", self.latency),
            ("unused", self.unused),
            ("compared with", self.compared),
        ):
            if found:
                yield f"{title}:"
                yield from (f"  {line}" for line in found)


def explain(plan: Plan) -> Explanation:
    """Everything that can be said. Plans again for each kind of node, so it takes several times as long as planning."""
    return Explanation(
        bottleneck=_bottleneck(plan),
        one_more=[_one_more(plan, one) for one in _kinds(plan.problem)],
        cuts=[_cut(plan, nth) for nth in range(1, len(plan.stages))],
        latency=_latency(plan),
        unused=_unused(plan),
        compared=_compared(plan),
    )


def _bottleneck(plan: Plan) -> list[str]:
    nth = plan.bottleneck
    stage = plan.stages[nth]
    lines = [
        f"stage {nth} (layers {stage.first_layer}..{stage.end_layer - 1}, {len(stage.nodes)} "
        f"{'replica' if len(stage.nodes) == 1 else 'replicas'}) gives {_rate(stage.tokens_per_s)}"
    ]
    others = [other for index, other in enumerate(plan.stages) if index != nth]
    if others:
        following = min(others, key=lambda other: other.tokens_per_s)
        lines.append(
            f"the next slowest gives {_rate(following.tokens_per_s)}, so more for this stage alone brings at most "
            f"{_percent(following.tokens_per_s / stage.tokens_per_s)}"
        )
    if plan.optimal:
        lines.append("no other cut or placement of these nodes is better")
    elif plan.bound:
        lines.append(
            f"not proven best: no plan exceeds {_rate(plan.bound)}, this one gives "
            f"{plan.tokens_per_s / plan.bound:.0%} of that"
        )
    if plan.problem.merged:
        lines.append(
            f"nodes were put into {len(plan.problem.classes)} classes, each as slow and small as its least member"
        )
    return lines


def _kinds(problem: Problem) -> list[int]:
    most = _KINDS_OF_MANY if sum(problem.counts) > _MANY_NODES else _KINDS
    return sorted(range(len(problem.classes)), key=lambda one: -problem.counts[one])[:most]


def _one_more(plan: Plan, one: int) -> str:
    problem = plan.problem
    grown = problem.classes[one]
    extra = replace(grown, nodes=(*grown.nodes, replace(grown.nodes[0], name="one more")))
    classes = (*problem.classes[:one], extra, *problem.classes[one + 1 :])
    found = solve(replace(problem, classes=classes)).stages
    head = f"like {_member(problem, one)}: "
    if problem.goal.objective == "latency":
        before, after = plan.latency_ms, problem.latency(found) * 1e3 if found else plan.latency_ms
        return head + (
            f"{after:.4g} ms a token ({_percent(after / before)})" if after < before else "nothing"
        )
    after = max(problem.throughput(found) if found else 0.0, plan.tokens_per_s)
    if after <= plan.tokens_per_s * (1 + 1e-6):
        return head + "nothing"
    return head + f"{_rate(after)} ({_percent(after / plan.tokens_per_s)})"


def _cut(plan: Plan, nth: int) -> str:
    """What moving the cut before stage `nth` by one piece would do, with the same nodes."""
    problem = plan.problem
    before = problem.ends[plan.chosen[nth].first]
    said = []
    for step, word in ((-1, "earlier"), (1, "later")):
        moved = _moved(plan.chosen, nth, step)
        if moved is None:
            said.append(f"{word}: no layer would be left")
            continue
        lacking = [
            _member(problem, one)
            for stage in moved[nth - 1 : nth + 1]
            for one, count in enumerate(stage.counts)
            if count and problem.rates[one, stage.first, stage.end] == 0
        ]
        if lacking:
            said.append(f"{word}: not on {lacking[0]} (memory or pins)")
            continue
        rate, latency = problem.throughput(moved), problem.latency(moved) * 1e3
        said.append(f"{word}: {_rate(rate)} ({_percent(rate / plan.tokens_per_s)}), {latency:.4g} ms")
    return f"before layer {before}: one piece " + "; ".join(said)


def _moved(stages: Stages, nth: int, step: int) -> Stages | None:
    left, right = stages[nth - 1], stages[nth]
    at = right.first + step
    if not left.first < at < right.end:
        return None
    pair = (Stage(left.first, at, left.counts), Stage(at, right.end, right.counts))
    return (*stages[: nth - 1], *pair, *stages[nth + 1 :])


def _latency(plan: Plan) -> list[str]:
    computing = sum(stage.pass_ms for stage in plan.stages)
    lines = [
        f"{plan.latency_ms:.4g} ms a token on the slowest route: {computing:.4g} ms in stages, "
        f"{max(0.0, plan.latency_ms - computing):.4g} ms on links"
    ]
    limit = plan.problem.goal.latency_ms
    if limit:
        lines.append(f"the limit of {limit:g} ms leaves {limit - plan.latency_ms:.3g} ms")
    return lines


def _unused(plan: Plan) -> list[str]:
    if not plan.unused:
        return []
    problem = plan.problem
    used = [sum(stage.counts[one] for stage in plan.chosen) for one in range(len(problem.classes))]
    lines = []
    for one, members in enumerate(problem.classes):
        spare = len(members.nodes) - used[one]
        if not spare:
            continue
        somewhere = (problem.rates[one] > 0).any()
        why = "would not raise the slowest stage's rate" if somewhere else "holds no piece of the model"
        if somewhere and (problem.goal.objective == "latency" or problem.goal.latency_ms):
            why = "not needed, or too slow for the latency wanted"
        lines.append(f"{spare} like {_member(problem, one)}: {why}")
    return lines


def _compared(plan: Plan) -> list[str]:
    lines = []
    for name, make in BASELINES.items():
        other = make(plan.problem)
        if other is None:
            lines.append(f"{name}: does not fit")
            continue
        rate, latency = plan.problem.throughput(other), plan.problem.latency(other) * 1e3
        lines.append(
            f"{name}: {_rate(rate)}, {latency:.4g} ms; the plan gives {plan.tokens_per_s / rate:.2f} times that rate"
        )
    return lines


def _member(problem: Problem, one: int) -> str:
    return problem.classes[one].nodes[0].name


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.4g} tokens/s"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"
