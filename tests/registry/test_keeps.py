"""A partition goes where it is still loaded, unless it failed there."""

from stagemesh.services.registry.placement import keeps

from stagemesh.v1.registry_pb2 import KeptPartition, ModelSpec, NodeRecord, Partition
from tests.registry.assigned import Mesh, model


def spec() -> ModelSpec:
    found = model("m", [100, 100])
    found.revision = "abc-1"
    return found


def node(node_id: str, memory: int, *kept: Partition, **other: str) -> NodeRecord:
    record = NodeRecord(node_id=node_id, memory_bytes=memory, device="cpu")
    for layers in kept:
        record.keeps.append(
            KeptPartition(
                **{"checkpoint": "abc", **other},  # type: ignore[arg-type]
                first_layer=layers.first_layer,
                end_layer=layers.end_layer,
                bytes=100,
            )
        )
    return record


def test_each_stage_goes_where_it_is_kept() -> None:
    wanted = spec()
    first, second = wanted.partitions
    mesh = Mesh([node("a", 1_000, second), node("b", 1_000, first), node("large", 10**6)], [wanted])
    mesh.settle()
    homes = {held.stage: held.node_id for held in mesh.assignments.values() if held.node_id != "large"}
    assert homes == {0: "b", 1: "a"}


def test_where_there_is_no_room_nothing_is_gained_by_it() -> None:
    wanted = spec()
    mesh = Mesh([node("full", 110, *wanted.partitions), node("large", 10**6)], [wanted])
    mesh.settle()
    assert mesh.on("full") == []


def test_only_the_same_partition_counts() -> None:
    wanted = spec()
    first = wanted.partitions[0]
    assert keeps(node("a", 1, first), wanted, 0)
    assert not keeps(node("a", 1, first), wanted, 1)
    assert not keeps(node("a", 1, first, checkpoint="other"), wanted, 0)
    assert not keeps(node("a", 1, first, dtype="BF16"), wanted, 0)
