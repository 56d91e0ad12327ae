"""Starts and stops stage processes of this machine, as many as the registry asks for in etcd."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from stagemesh import records
from stagemesh.errors import StagemeshError
from stagemesh.etcd import Etcd, Snapshot
from stagemesh.local.supervisor import Supervised
from stagemesh.v1.registry_pb2 import CapacityRecord

log = logging.getLogger(__name__)

_RETRY_S = 1.0


class NodePool:
    """Keeps as many nodes as the registry asks for; without more than the least it does nothing.

    Attributes:
        least: nodes that stay.
    """

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self._most = most
        self._wanted = 0
        self._nodes: list[Supervised] = []
        self._changed = asyncio.Event()
        self._etcd: Etcd | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<NodePool {len(self._nodes)} of {self._wanted}, {self.least}..{self.most}>"

    @property
    def most(self) -> int:
        """Nodes at most; cores and memory are shared out over so many."""
        return max(self._most, self.least)

    @property
    def flags(self) -> dict[str, str | int | float]:
        """For the registry, which decides."""
        if self.most == self.least:
            return {}
        return {"node-pool": "etcd", "min-nodes": self.least, "max-nodes": self.most}

    async def start(
        self,
        etcd: str,
        nodes: list[Supervised],
        make: Callable[[int], Supervised],
        grace_s: float,
        progress: Callable[[str], None],
    ) -> None:
        """Begin to follow what is asked for.

        Args:
            etcd: endpoints.
            nodes: the places that run, shared with their owner; added to and taken from at the end.
            make: the place of a node, by its index.
            grace_s: that a node has to leave.
            progress: gets a line whenever one comes or goes.
        """
        if self.most == self.least:
            return
        self._nodes, self._wanted = nodes, len(nodes)
        self._make, self._grace_s, self._progress = make, grace_s, progress
        self._etcd = Etcd(etcd)
        await self._etcd.start()
        self._tasks = [
            asyncio.create_task(self._follow(self._etcd), name="node-pool-watch"),
            asyncio.create_task(self._keep(), name="node-pool"),
        ]

    async def stop(self) -> None:
        """Follow no longer; the nodes are left as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._etcd is not None:
            etcd, self._etcd = self._etcd, None
            await etcd.close()

    async def _follow(self, etcd: Etcd) -> None:
        async with aclosing(etcd.watch(records.CAPACITY)) as changes:  # type: ignore[type-var]
            async for change in changes:
                value = change.items.get(records.CAPACITY) if isinstance(change, Snapshot) else change.value
                if value is None:
                    continue  # nobody asked yet, or etcd lost what was asked: as it is
                try:
                    asked = records.from_json(value, CapacityRecord).nodes
                except ValueError as error:
                    log.error("local.capacity_unreadable: %s", error)
                    continue
                self._wanted = min(max(asked, self.least), self.most)
                self._changed.set()

    async def _keep(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while len(self._nodes) != self._wanted:
                try:
                    await (self._add() if len(self._nodes) < self._wanted else self._remove())
                except StagemeshError as error:
                    self._progress(f"node-{len(self._nodes)} cannot be started: {error.message}")
                    await asyncio.sleep(_RETRY_S)

    async def _add(self) -> None:
        place = self._make(len(self._nodes))
        await place.start()
        place.supervise()
        self._nodes.append(place)
        self._progress(f"{place.name} started: {len(self._nodes)} of at most {self.most} nodes")

    async def _remove(self) -> None:
        place = self._nodes.pop()
        await place.stop(self._grace_s)
        self._progress(f"{place.name} stopped: {len(self._nodes)} nodes are left")
