"""What a plan says of itself: explanation, picture, and comparison with simpler splits."""

from random import Random
from xml.etree import ElementTree

import pytest

from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.planning import Goal, Link, Links, ModelShape, Node, Pin, Speed, build, solve
from stagemesh.planning.baselines import BASELINES, by_memory, even
from stagemesh.planning.explain import explain
from stagemesh.planning.picture import svg
from stagemesh.planning.plan import make_plan
from tests.registry.plan_cases import MB, case

FAST = Speed({1: 1.0, 32: 1.0})
SLOW = Speed({1: 3.0, 32: 3.0})


def shape(layers: int = 8) -> ModelShape:
    return ModelShape("m", [10 * MB] * layers, hidden_size=64)


def node(name: str, speed: Speed = FAST, megabytes: int = 1000, **more: str) -> Node:
    return Node(name, megabytes * MB, speed, **more)  # type: ignore[arg-type]


def test_equal_nodes_get_equal_parts_and_a_slow_one_fewer_layers() -> None:
    plan = make_plan(shape(), [node("a"), node("b")], Links(), Goal())
    assert plan.optimal
    # Two stages of four, or two whole replicas: the same rate, and the second is quicker by nothing.
    assert plan.tokens_per_s == pytest.approx(8 / 4e-3)
    plan = make_plan(shape(), [node("a"), node("b", SLOW)], Links(), Goal(stages=2))
    assert {stage.nodes: stage.end_layer - stage.first_layer for stage in plan.stages} == {
        ("a",): 6,
        ("b",): 2,
    }


def test_the_bottleneck_stage_gets_the_replicas_not_the_whole_pipeline() -> None:
    # Layer 0 takes twice as long as all others together and cannot be parted; a node holds it, or the others.
    heavy = ModelShape("m", [120 * MB, *[10 * MB] * 6])
    nodes = [node(f"n{index}", megabytes=150) for index in range(4)]
    three = make_plan(heavy, nodes[:3], Links(), Goal())
    assert [len(stage.nodes) for stage in three.stages] == [2, 1]
    # Two whole pipelines would need a fourth node for that.
    pipelines = make_plan(heavy, nodes[:2], Links(), Goal())
    assert three.tokens_per_s == pytest.approx(2 * pipelines.tokens_per_s)


def test_a_limit_on_latency_keeps_to_the_near_zone() -> None:
    nodes = [
        node("a", zone="x", megabytes=60),
        node("b", zone="x", megabytes=60),
        node("c", zone="y", megabytes=60),
    ]
    links = Links(across=Link(rtt_ms=50))
    assert len(make_plan(shape(), nodes, links, Goal(stages=3)).stages) == 3
    near = make_plan(shape(), nodes, links, Goal(latency_ms=20))
    assert {name for stage in near.stages for name in stage.nodes} == {"a", "b"}
    assert near.latency_ms <= 20
    with pytest.raises(FailedPrecondition, match=r"latency_ms: 5 ms cannot be kept: 8 ms is the least"):
        make_plan(shape(), nodes, links, Goal(latency_ms=5))


def test_pins_zones_and_labels_are_kept_to() -> None:
    nodes = [node("a", zone="x"), node("b", SLOW, zone="y"), node("c", SLOW, zone="y")]
    pinned = make_plan(shape(), nodes, Links(), Goal(pins=(Pin(0, 1, zone="y"),)))
    assert set(pinned.stages[0].nodes) <= {"b", "c"}
    only = make_plan(shape(), nodes, Links(), Goal(zones=("y",)))
    assert {name for stage in only.stages for name in stage.nodes} == {"b", "c"}
    with pytest.raises(InvalidArgument, match="none of 3 has memory and is of an allowed zone"):
        make_plan(shape(), nodes, Links(), Goal(zones=("z",)))
    with pytest.raises(InvalidArgument, match=r"pins\[0\].layers: 7..8 is not within the model's 0..7"):
        make_plan(shape(), nodes, Links(), Goal(pins=(Pin(7, 9),)))


def test_a_layer_that_nothing_holds_is_named_with_the_numbers() -> None:
    big = ModelShape("m", [10 * MB, 500 * MB, 10 * MB])
    with pytest.raises(FailedPrecondition, match=r"layers 1..1, which may not be parted: 500000000 bytes"):
        make_plan(big, [node("a", megabytes=100)], Links(), Goal())


def test_what_one_more_node_brings_is_what_planning_with_it_gives() -> None:
    nodes = [node("fast", megabytes=60), node("slow", SLOW, megabytes=60), node("slow2", SLOW, megabytes=60)]
    plan = make_plan(shape(), nodes, Links(), Goal())
    said = explain(plan)
    for like, extra in (("fast", FAST), ("slow", SLOW)):
        after = make_plan(shape(), [*nodes, node("extra", extra, megabytes=60)], Links(), Goal()).tokens_per_s
        line = next(line for line in said.one_more if line.startswith(f"like {like}:"))
        assert f"{after:.4g} tokens/s" in line if after > plan.tokens_per_s else "nothing" in line
    assert said.bottleneck[0].startswith(f"stage {plan.bottleneck} ")
    assert "no other cut or placement of these nodes is better" in said.bottleneck


def test_no_moved_cut_is_better_than_an_optimal_plan_and_each_is_told() -> None:
    for seed in range(12):
        one = case(Random(seed), layers=8, nodes=4, goal=Goal())
        problem = build(one.shape, one.nodes, one.links, one.goal)
        if not solve(problem).stages:
            continue
        plan = make_plan(one.shape, one.nodes, one.links, one.goal)
        said = explain(plan)
        assert len(said.cuts) == len(plan.stages) - 1
        assert not any("(+" in line and "(+0.0" not in line for line in said.cuts)
        assert len(list(said.lines())) > 3


def test_simpler_splits_are_plans_and_never_beat_an_optimal_one() -> None:
    fitted = 0
    for seed in range(25):
        one = case(Random(seed), layers=7, nodes=3, goal=Goal())
        problem = build(one.shape, one.nodes, one.links, one.goal)
        found = solve(problem)
        for make in BASELINES.values():
            other = make(problem)
            if other is not None:
                problem.check(other)
                fitted += 1
                assert problem.throughput(other) <= problem.throughput(found.stages) * (1 + 1e-9)
    assert fitted > 25


def test_simpler_splits_are_what_they_say() -> None:
    nodes = [node("a", megabytes=600), node("b", megabytes=200)]
    problem = build(shape(), nodes, Links(), Goal())
    assert [(stage.first, stage.end) for stage in even(problem) or ()] == [(0, 4), (4, 8)]
    assert [(stage.first, stage.end) for stage in by_memory(problem) or ()] == [(0, 6), (6, 8)]
    tight = build(shape(), [node("a", megabytes=600), node("b", megabytes=40)], Links(), Goal())
    assert even(tight) is None


def test_the_picture_is_xml_with_every_stage_and_escapes_names() -> None:
    nodes = [node(f"<n{index}>", megabytes=60) for index in range(3)]
    plan = make_plan(ModelShape("a & b", [10 * MB] * 8), nodes, Links(), Goal())
    text = " ".join(ElementTree.fromstring(svg(plan)).itertext())
    assert "a & b: 8 layers" in text
    for stage in plan.stages:
        assert f"{stage.first_layer}..{stage.end_layer - 1}" in text
        assert stage.nodes[0] in text


def test_a_thousand_unlike_nodes_are_put_into_classes_and_the_bound_still_holds() -> None:
    rng = Random(5)
    nodes = [
        Node(f"n{index}", rng.randint(60, 400) * MB, Speed({8: rng.uniform(1, 9)}), zone=rng.choice("ab"))
        for index in range(200)
    ]
    model = ModelShape("m", [10 * MB] * 24, 5 * MB, 20 * MB)
    problem = build(model, nodes, Links(), Goal())
    assert problem.merged
    assert sum(problem.counts) == 200
    found = solve(problem)
    problem.check(found.stages)
    assert not found.optimal
    # Not even with all of every node's speed, in one piece of work without waste.
    most = sum(8 / (node.speed.layer_ms[8] / 1e3 * (24 * 10 + 20) / 10) for node in nodes)
    assert problem.throughput(found.stages) <= found.bound
    assert found.bound <= most * 1.5
    assert problem.throughput(found.stages) > 0.6 * found.bound
