"""Nodes for the planner from the records that running ones keep in etcd. Pure."""

from collections.abc import Iterable, Sequence

from stagemesh.v1.registry_pb2 import NodeRecord

from .fleet import Node, Speed

__all__ = ["from_record", "from_records"]


def from_record(record: NodeRecord) -> Node:
    """The node with what it announced: its two rates."""
    return Node(
        name=record.node_id,
        memory_bytes=record.memory_bytes,
        speed=Speed(gflops=record.gflops, memory_gbps=record.memory_gbps),
        device=record.device.partition(":")[0],
        zone=record.zone,
        labels=dict(record.labels),
    )


def from_records(records: Iterable[NodeRecord]) -> tuple[Sequence[Node], Sequence[str]]:
    """Nodes that can be planned with, and a line for each that cannot."""
    nodes, left_out = [], []
    for record in records:
        if record.draining:
            left_out.append(f"{record.node_id}: it drains")
        elif not record.memory_bytes or not record.gflops or not record.memory_gbps:
            left_out.append(f"{record.node_id}: its record says no memory or no speed")
        else:
            nodes.append(from_record(record))
    return nodes, left_out
