"""Deployments that the planner places: on unequal nodes, beside what runs, within labels and pins."""

import pytest
from stagemesh.services.registry.desired import build_spec
from stagemesh.services.registry.placement import allowed
from stagemesh.services.registry.planned import kept, plan_deployment, same_wish, wish_of
from stagemesh.services.registry.planned_certified import plan_certified
from stagemesh.services.registry.world import bytes_needed

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.planning.live import taken_bytes
from stagemesh.planning.pins import layers_of, parse_pin
from stagemesh.v1 import registry_pb2 as pb
from tests.checkpoints import make_llama
from tests.registry.assigned import Mesh

BIG = 10**9


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> checkpoints.Checkpoint:
    return checkpoints.inspect(make_llama(tmp_path_factory.mktemp("planned")))


def node(name: str, speed: float = 1.0, memory: int = BIG, **more) -> pb.NodeRecord:
    return pb.NodeRecord(
        node_id=name, device="cpu", memory_bytes=memory, gflops=50 * speed, memory_gbps=5 * speed, **more
    )


def ask(**settings) -> pb.DeployRequest:
    return pb.DeployRequest(source="/x", plan="throughput", **settings)


def deploy(found, request, world, busy=None) -> pb.ModelSpec:
    placed = plan_certified(request, found, "m", wish_of(request), world, 5, busy)
    return build_spec("m", request, found, source="/x", hub_revision="", placed=placed)


def test_a_faster_node_gets_more_layers_and_placement_follows(found) -> None:
    mesh = Mesh([node("slow", 1), node("fast", 3)], [])
    spec = deploy(found, ask(stages=2), mesh.world())
    layers = {
        spec.plan.stages[n].nodes[0]: p.end_layer - p.first_layer for n, p in enumerate(spec.partitions)
    }
    assert layers["fast"] > layers["slow"] > 0
    assert spec.plan.objective == "throughput"
    assert spec.plan.unix_ms == 5
    assert any("stage" in line for line in spec.plan.why)
    mesh.models["m"] = spec
    mesh.settle()
    for stage, planned in enumerate(spec.plan.stages):
        for name in planned.nodes:
            assert ("m", stage) in mesh.on(name)
    # It stays there, although another node is idle.
    mesh.nodes["idle"] = node("idle", 9)
    assert mesh.settle().decisions == []


def test_memory_of_others_is_taken(found) -> None:
    size = sum(found.layer_bytes) * 2
    mesh = Mesh([node("a", memory=size), node("b", 0.5, memory=BIG)], [])
    other = pb.ModelSpec(name="other", revision="o-1", checkpoint_dtype="F32", replicas=[1])
    other.partitions.add(end_layer=1, parameter_bytes=int(size * 0.8))
    held = pb.Assignment(
        replica_id="o", node_id="a", model="other", revision="o-1", stages=1, partition=other.partitions[0]
    )
    spec = deploy(found, ask(stages=1), mesh.world())
    assert set(spec.plan.stages[0].nodes) == {"a", "b"}
    mesh.models["other"], mesh.assignments["o"] = other, held
    spec = deploy(found, ask(stages=1), mesh.world())
    assert list(spec.plan.stages[0].nodes) == ["b"]
    # What a router sees counts the same.
    replica = pb.ReplicaRecord(node_id="a", revision="o-1", partition=held.partition)
    assert taken_bytes([replica], [other], mesh.nodes.values()) == {
        "a": bytes_needed(other, held.partition, mesh.nodes["a"])
    }
    del mesh.nodes["b"]
    mesh.nodes["a"].memory_bytes = 1000
    with pytest.raises(FailedPrecondition, match="are taken"):
        deploy(found, ask(), mesh.world())


def test_a_node_that_computes_for_others_gets_fewer_layers(found) -> None:
    mesh = Mesh([node("a", 2), node("b", 2)], [])

    def layers(busy) -> dict[str, int]:
        spec = deploy(found, ask(stages=2), mesh.world(), busy)
        parts = zip(spec.plan.stages, spec.partitions, strict=True)
        return {stage.nodes[0]: part.end_layer - part.first_layer for stage, part in parts}

    alone = layers(None)
    assert layers({"a": 0.01}) == alone
    shared = layers({"a": 0.6})
    assert shared["a"] < alone["a"]
    assert shared["a"] + shared["b"] == alone["a"] + alone["b"]
    assert layers({"a": 5.0}), "however much it has to do, there is a plan"
    spec = deploy(found, ask(stages=2), mesh.world(), {"a": 0.6})
    assert "a computes 60% of the time for others, and counts as that much slower" in spec.plan.why


def test_labels_zones_and_pins_hold_when_planned_and_when_placed(found) -> None:
    nodes = [
        node("gpu", 9, labels={"kind": "gpu"}, zone="a"),
        node("home", 1, zone="b", labels={"kind": "x"}),
        node("away", 1, zone="c", labels={"kind": "x"}),
    ]
    mesh = Mesh(nodes, [])
    request = ask(stages=2, pins=[parse_pin("first=zone:b")], node_labels={"kind": "x"})
    spec = deploy(found, request, mesh.world())
    assert [list(stage.nodes) for stage in spec.plan.stages] == [["home"], ["away"]]
    assert [name for name in mesh.nodes if allowed(spec, 0, mesh.nodes[name])] == ["home"]
    assert [name for name in mesh.nodes if allowed(spec, 1, mesh.nodes[name])] == ["home", "away"]
    mesh.models["m"] = spec
    mesh.settle()
    mesh.lose("home")
    mesh.now += 10
    for _ in range(3):
        mesh.apply(mesh.plan())
        mesh.load()
        mesh.now += 10
    assert not mesh.counts()["m", 0]  # nowhere else
    assert mesh.plan().pending["m"]


def test_asked_again_the_same_stays(found) -> None:
    mesh = Mesh([node("a"), node("b")], [])
    spec = deploy(found, ask(), mesh.world())
    wish = wish_of(ask())
    again = kept(spec, wish, found, "")
    assert again is not None
    assert build_spec("m", ask(), found, source="/x", hub_revision="", placed=again) == spec
    assert kept(spec, wish_of(ask(stages=2)), found, "") is None
    assert kept(spec, wish, found, "BF16") is None
    assert kept(None, wish, found, "") is None
    assert same_wish(wish, spec.plan)


def test_without_a_certificate_it_is_held_to_one_stage(found, monkeypatch) -> None:
    mesh = Mesh([node("a", 1), node("b", 1)], [])
    monkeypatch.setattr("stagemesh.parity.shipped", list)
    spec = deploy(found, ask(), mesh.world())
    assert len(spec.partitions) == 1
    if not spec.plan.why[0].startswith("one stage"):
        assert len(plan_deployment(found, "m", "", [], wish_of(ask()), mesh.world()).cuts) == 1
    with pytest.raises(FailedPrecondition):
        deploy(found, ask(stages=2), mesh.world())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"plan": "speed"}, "plan"),
        ({"plan": "latency", "replicas": 2}, "replicas"),
        ({"auto_recut": True}, "auto_recut"),
        ({"node_labels": {"a": "b"}}, "node_labels"),
        ({"pins": [pb.PlacementPin(layers="first", zone="a")]}, "pins"),
    ],
)
def test_wishes_that_make_no_sense(settings, field) -> None:
    with pytest.raises(InvalidArgument) as caught:
        wish_of(pb.DeployRequest(**settings))
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "first", "first=", "x=zone", "0-1=label:a", "=zone:a"])
def test_pins_that_make_no_sense(text) -> None:
    with pytest.raises(InvalidArgument, match="pins"):
        parse_pin(text)


def test_layers_of_pins() -> None:
    assert [layers_of(text, 8) for text in ("first", "last", "3", "0-7")] == [(0, 1), (7, 8), (3, 4), (0, 8)]
    for text in ("8", "5-3", "0-8", "-1", "a", "1-2-3"):
        with pytest.raises(InvalidArgument):
            layers_of(text, 8)
