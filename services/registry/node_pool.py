"""Has as many nodes started as the replicas need, by whoever can: a launcher that reads etcd, or Kubernetes.

A node is taken away only when it is empty and has the last name, since launchers and StatefulSets count nodes up; `packing` empties
these first.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from stagemesh import metrics, records
from stagemesh.etcd import Etcd, Put
from stagemesh.v1.registry_pb2 import CapacityRecord

from .events import Events
from .kubernetes import Workload, workload_of
from .leadership import Leadership
from .scaling.capacity import Bounds, Capacity
from .scaling.packing import OVERLOAD, Box, order_of

PERIOD_S = 2.0


class Pool(Protocol):
    """Whatever starts and stops nodes."""

    async def size(self) -> int | None:
        """Nodes asked for last; None: nobody asked yet."""

    async def resize(self, nodes: int, reason: str, term: int) -> None:
        """Ask for so many."""


class EtcdPool:
    """Writes the number to etcd: `stagemesh serve --max-nodes` follows it, and any other launcher may."""

    def __init__(self, etcd: Etcd, leadership: Leadership) -> None:
        self._etcd = etcd
        self._leadership = leadership

    async def size(self) -> int | None:
        """What stands there."""
        found = await self._etcd.get(records.CAPACITY)
        return None if found is None else records.from_json(found.value, CapacityRecord).nodes

    async def resize(self, nodes: int, reason: str, term: int) -> None:
        """Write it, while this registry leads."""
        record = CapacityRecord(nodes=nodes, reason=reason, unix_ms=int(time.time() * 1000))
        await self._leadership.commit([Put(records.CAPACITY, records.to_json(record))], term=term)


class KubernetesPool:
    """Patches the scale of the workload whose pods are the nodes."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    async def size(self) -> int | None:
        """What its spec says."""
        return await asyncio.to_thread(self._workload.replicas)

    async def resize(self, nodes: int, reason: str, term: int) -> None:
        """Ask for so many pods; the patch says a number, so that a second one of the same changes nothing."""
        await asyncio.to_thread(self._workload.scale, nodes)


class NodePool:
    """Decides on the number of nodes; without a pool it only shows it, for an autoscaler outside to follow."""

    def __init__(self, pool: Pool | None, bounds: Bounds, events: Events) -> None:
        self._pool = pool
        self._bounds = bounds
        self._capacity = Capacity(bounds)
        self._events = events
        self._next = 0.0
        self._gauge = metrics.gauge("stagemesh_nodes_wanted", "Nodes that there should be.")

    def reset(self) -> None:
        """What a former term saw is old."""
        self._capacity = Capacity(self._bounds)

    async def step(self, boxes: Sequence[Box], pending: Sequence[int], now: float, term: int) -> None:
        """Look at the nodes and what has no room; `now` in seconds. Raises what the pool raises."""
        if now < self._next:
            return
        self._next = now + PERIOD_S
        size = await self._pool.size() if self._pool is not None else None
        here = len(boxes)
        asked = here if size is None else size
        crowded = any(len(box.pieces) > 1 and box.busy >= OVERLOAD for box in boxes)
        empty = last_empty(boxes)
        wish = self._capacity.decide(
            pending,
            [box.memory for box in boxes],
            0 if asked > here else empty,
            now,
            starting=max(asked - here, 0),
            crowded=crowded and all(box.pieces for box in boxes),
        )
        self._gauge.set(wish.nodes if wish is not None else asked)
        if wish is None or wish.nodes == asked:
            return
        if self._pool is not None:
            await self._pool.resize(wish.nodes, wish.reason, term)
        if self._pool is not None or wish.nodes > asked:
            kind = "nodes.more" if wish.nodes > asked else "nodes.fewer"
            self._events.note(kind, "", f"from {asked} to {wish.nodes} nodes: {wish.reason}", to=wish.nodes)


def last_empty(boxes: Sequence[Box]) -> int:
    """How many nodes with the last names are empty."""
    count = 0
    for box in sorted(boxes, key=lambda each: order_of(each.node_id), reverse=True):
        if box.pieces:
            break
        count += 1
    return count


def pool_of(text: str, etcd: Etcd, leadership: Leadership) -> Pool | None:
    """What the operator named; raises `ConfigError`."""
    if not text:
        return None
    return EtcdPool(etcd, leadership) if text == "etcd" else KubernetesPool(workload_of(text))
