"""A model that may only be in some zones: where it is placed, and what becomes of replicas elsewhere."""

import pytest
from stagemesh.services.registry.desired import MAX_ZONES, check_deploy

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec, NodeRecord
from tests.registry.assigned import Mesh, model


def node(node_id: str, zone: str) -> NodeRecord:
    return NodeRecord(node_id=node_id, memory_bytes=10_000, device="cpu", zone=zone)


def in_zones(*zones: str) -> ModelSpec:
    spec = model("m", [100, 100])
    spec.zones[:] = zones
    return spec


def test_it_is_placed_in_its_zones_only() -> None:
    mesh = Mesh([node("a1", "a"), node("b1", "b"), node("c1", "c")], [in_zones("a", "b")])
    mesh.settle()
    assert sorted(mesh.counts().values()) == [1, 1]
    assert mesh.on("c1") == []


def test_without_a_node_there_it_waits_and_says_so() -> None:
    mesh = Mesh([node("c1", "c"), node("none", "")], [in_zones("a", "b")])
    plan = mesh.settle()
    assert not mesh.assignments
    assert "none of 2 nodes is in a or b" in plan.pending["m"][0]


def test_replicas_elsewhere_leave_once_they_are_replaced() -> None:
    mesh = Mesh([node("c1", "c"), node("a1", "a")], [in_zones("c")])
    mesh.settle()
    assert len(mesh.on("c1")) == 2
    mesh.models["m"] = in_zones("a")
    mesh.apply(mesh.plan())
    assert len(mesh.on("c1")) == 2, "they serve until the others are ready"
    mesh.settle()
    assert (len(mesh.on("c1")), len(mesh.on("a1"))) == (0, 2)


@pytest.mark.parametrize("zones", [[""], ["z" * 64], ["z"] * (MAX_ZONES + 1)])
def test_a_zone_that_no_node_can_have_is_refused(zones: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_deploy(DeployRequest(source="s", zones=zones))
    assert caught.value.field == "zones"
