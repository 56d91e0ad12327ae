"""The nodes file: what it gives, and that every fault is told at once with its field."""

import pytest

from stagemesh.errors import InvalidArgument
from stagemesh.planning.live import from_records
from stagemesh.planning.nodes_file import read_nodes
from stagemesh.v1.registry_pb2 import NodeRecord

GOOD = """
nodes:
  - {name: big, count: 2, device: cuda, memory: 24GiB, gflops: 50000, memory_gbps: 900, zone: a, network_gbit: 10}
  - name: small
    memory: 500 MB
    ms_per_layer: {1: 2, 8: 2.5, 32: 6}
    zone: b
    labels: {tier: gold}
links:
  within: {rtt_ms: 0.2}
  across: {rtt_ms: 9, gbit: 1}
  pairs: [{zones: [a, b], rtt_ms: 4}]
pins:
  - {layers: first, zone: a}
  - {layers: 2-5, nodes: [small]}
  - {layers: 3, labels: {tier: gold}}
"""


def test_everything_in_it_arrives() -> None:
    found = read_nodes(GOOD)
    assert [node.name for node in found.nodes] == ["big-1", "big-2", "small"]
    assert found.nodes[0].memory_bytes == 24 * 2**30
    assert found.nodes[2].memory_bytes == 500 * 10**6
    assert found.nodes[2].speed.layer_ms == {1: 2, 8: 2.5, 32: 6}
    assert found.links.between("b", "a").rtt_ms == 4
    assert found.links.between("a", "a").rtt_ms == 0.2
    assert [(pin.first, pin.end) for pin in found.pins(12)] == [(0, 1), (2, 6), (3, 4)]
    assert found.pins(12)[1].nodes == ("small",)


def test_every_fault_is_told_at_once() -> None:
    text = """
nodes:
  - {name: a, memory: lots, gflops: 1, memory_gbps: 1}
  - {name: b, memory: 1GiB, gflops: 1}
  - {name: c, memory: -1, gflops: 1, memory_gbps: .inf}
  - {memory: 1, ms_per_layer: {0: 1}, colour: red}
links: {pairs: [{zones: [a], rtt_ms: x}]}
pins: [{layers: 5-x, zone: a}, {layers: 3}]
"""
    with pytest.raises(InvalidArgument) as caught:
        read_nodes(text)
    told = caught.value.message.splitlines()
    for field in (
        "nodes[0].memory: must be bytes",
        "nodes[1]: needs ms_per_layer, or gflops and memory_gbps",
        "nodes[2].memory: ",
        "nodes[2].memory_gbps: ",
        "nodes[3].name: ",
        "nodes[3].ms_per_layer: ",
        "nodes[3].colour: ",
        "links.pairs[0].zones[1]: ",
        "links.pairs[0].rtt_ms: ",
        "pins[0].layers: ",
        "pins[1]: needs a zone, labels or nodes",
    ):
        assert any(line.startswith(field) for line in told), field
    assert caught.value.field == "nodes[0].memory"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nodes: [", "not YAML, line 1"),
        ("- a", "must hold `nodes:`"),
        ("{}", "nodes: field required"),
        ("nodes: []", "nodes: "),
        (GOOD.replace("small", "big-1"), "nodes: the name 'big-1' is given 2 times"),
        (GOOD.replace("zones: [a, b]", "zones: [a, q]"), "links.pairs[0].zones: no node is in zone 'q'"),
        (
            GOOD.replace("layers: first, zone: a", "layers: first, zone: q"),
            "pins[0].zone: no node is in zone 'q'",
        ),
        (GOOD.replace("nodes: [small]", "nodes: [tiny]"), "pins[1].nodes: there is no node 'tiny'"),
        (GOOD.replace("count: 2", "count: 20000"), "nodes[0].count: "),
    ],
)
def test_one_fault(text: str, fault: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_nodes(text)
    assert fault in caught.value.message


def test_records_of_running_nodes_become_nodes_or_are_named() -> None:
    good = NodeRecord(node_id="a", device="cuda:0", memory_bytes=100, gflops=5, memory_gbps=3, zone="z")
    good.labels["tier"] = "gold"
    nodes, left_out = from_records(
        [
            good,
            NodeRecord(node_id="b", memory_bytes=100, gflops=5, memory_gbps=3, draining=True),
            NodeRecord(node_id="c", memory_bytes=100),
        ]
    )
    assert [(node.name, node.device, node.zone, dict(node.labels)) for node in nodes] == [
        ("a", "cuda", "z", {"tier": "gold"})
    ]
    assert left_out == ["b: it drains", "c: its record says no memory or no speed"]
