"""Nodes and links for the planner from the records that running nodes keep in etcd. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from stagemesh.revisions import specs_of
from stagemesh.v1.registry_pb2 import ModelSpec, NodeRecord, ReplicaRecord

from .fleet import Link, Links, Node, Speed
from .goal import HEADROOM
from .shape import ITEM_BYTES

__all__ = ["from_record", "from_records", "links_from", "taken_bytes"]


def from_record(record: NodeRecord, shape: str = "") -> Node:
    """The node with what it measured of layers of that shape (`profile.shape_of`), else with its two rates."""
    own = next((one for one in record.layer_profiles if one.shape == shape and one.layer_ms), None)
    measured = {rows: ms for rows, ms in own.layer_ms.items() if rows > 0 and ms > 0} if own else {}
    return Node(
        name=record.node_id,
        memory_bytes=record.memory_bytes,
        speed=Speed(measured, record.gflops, record.memory_gbps, max(0.0, own.overhead_ms) if own else 0.0),
        device=record.device.partition(":")[0],
        zone=record.zone,
        labels=dict(record.labels),
    )


def taken_bytes(
    replicas: Iterable[ReplicaRecord], models: Iterable[ModelSpec], nodes: Iterable[NodeRecord]
) -> dict[str, int]:
    """Bytes that the replicas take on each node with what they keep for sessions, as placement counts them."""
    specs = {one.revision: one for model in models for one in specs_of(model)}
    devices = {node.node_id: node.device.partition(":")[0] for node in nodes}
    taken: dict[str, int] = {}
    for replica in replicas:
        spec = specs.get(replica.revision, ModelSpec())
        stored = ITEM_BYTES.get(spec.checkpoint_dtype, 4)
        own = "F32" if devices.get(replica.node_id) == "cpu" else spec.checkpoint_dtype
        computed = ITEM_BYTES.get(spec.dtype or own, stored)
        weights = replica.partition.parameter_bytes * computed / stored
        size = math.ceil(max(weights * HEADROOM, weights + replica.kv_bytes_total))
        taken[replica.node_id] = taken.get(replica.node_id, 0) + size
    return taken


def from_records(
    records: Iterable[NodeRecord], shape: str = "", taken: Mapping[str, int] | None = None
) -> tuple[Sequence[Node], Sequence[str]]:
    """Nodes that can be planned with, with the memory that is not `taken` (bytes by node), and a line for each that cannot."""
    nodes, left_out = [], []
    for record in records:
        node = from_record(record, shape)
        if record.draining:
            left_out.append(f"{record.node_id}: it drains")
        elif not record.memory_bytes or not (
            node.speed.layer_ms or (record.gflops > 0 and record.memory_gbps > 0)
        ):
            left_out.append(f"{record.node_id}: its record says no memory or no speed")
        elif (free := node.memory_bytes - (taken or {}).get(record.node_id, 0)) <= 0:
            left_out.append(f"{record.node_id}: all of its {node.memory_bytes} bytes are taken")
        else:
            nodes.append(replace(node, memory_bytes=free))
    return nodes, left_out


def links_from(records: Sequence[NodeRecord]) -> Links:
    """Of each pair of zones the median of what their nodes measured; the median of all where a pair has nothing."""
    zones = {record.node_id: record.zone for record in records}
    seen: dict[tuple[str, str], list[Link]] = {}
    for record in records:
        for other, link in record.links.items():
            if other in zones and link.rtt_ms > 0:
                pair = (min(record.zone, zones[other]), max(record.zone, zones[other]))
                seen.setdefault(pair, []).append(Link(link.rtt_ms, max(0.0, link.gbit)))
    pairs = {pair: _median(links) for pair, links in seen.items()}
    every = [link for links in seen.values() for link in links]
    rest = _median(every) if every else Link()
    return Links(within=rest, across=rest, pairs=pairs)


def _median(links: Sequence[Link]) -> Link:
    known = [link.gbit for link in links if link.gbit]
    return Link(median(link.rtt_ms for link in links), median(known) if known else 0.0)
