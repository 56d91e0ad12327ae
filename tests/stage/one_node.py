"""A stage node as its process makes it, on a real etcd; what a registry would write is written by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagemesh.services.stage.config import StageConfig
from stagemesh.services.stage.node import Node
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh import records
from stagemesh.checkpoint import Checkpoint, inspect
from stagemesh.etcd import Etcd, Lease, Snapshot
from stagemesh.grpc_server import GrpcServer
from stagemesh.loop_lag import LoopLag
from stagemesh.v1.registry_pb2 import (
    Assignment,
    ModelSpec,
    NodeRecord,
    Partition,
    ReplicaRecord,
    ReplicaState,
)
from stagemesh.v1.stage_pb2 import RouteHop


@dataclass
class RunningNode:
    """A node, and what etcd says of it."""

    node: Node
    etcd: Etcd
    lease: Lease
    server: GrpcServer
    record: NodeRecord
    # Every state that a replica was published in, in order.
    states: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    # "replica state", "node draining" and "keeps number" in the order in which etcd heard of them.
    events: list[tuple[str, str]] = field(default_factory=list)

    async def assign(
        self,
        model: str,
        folder: Path,
        stage: int = 0,
        *,
        ends: tuple[int, ...] = (8,),
        found: Checkpoint | None = None,
    ) -> str:
        """Ask it for a stage of a checkpoint (as it was `found`) cut at `ends`; the replica's id."""
        found = found or inspect(folder)
        begins = (0, *ends)
        partitions = [
            Partition(first_layer=first, end_layer=end, parameter_bytes=1000)
            for first, end in zip(begins, ends, strict=False)
        ]
        spec = ModelSpec(
            name=model,
            source=str(folder),
            revision=f"{found.revision}-x",
            task=found.task,
            partitions=partitions,
            context_length=64,
        )
        assignment = Assignment(
            replica_id=f"{model}-{stage}-a",
            node_id=self.record.node_id,
            model=model,
            stage=stage,
            stages=len(ends),
            partition=partitions[stage],
            revision=spec.revision,
        )
        await self.etcd.put(records.model_key(model), records.to_json(spec))
        key = records.assignment_key(self.record.node_id, assignment.replica_id)
        await self.etcd.put(key, records.to_json(assignment))
        return assignment.replica_id

    async def unassign(self, replica_id: str) -> None:
        await self.etcd.delete(records.assignment_key(self.record.node_id, replica_id))

    async def is_in(self, replica_id: str, state: str, within_s: float = 40) -> None:
        """Wait until the replica was published in that state."""
        async with asyncio.timeout(within_s):
            while state not in self.states.get(replica_id, []):
                await asyncio.sleep(0.02)

    def hop(self, stage: int, replica_id: str) -> RouteHop:
        return RouteHop(stage=stage, replica_id=replica_id, address=self.record.address)

    async def follow(self) -> None:
        """Note what others see of it in etcd."""
        async for update in self.etcd.watch("/stagemesh/v1/"):
            items: Any = (
                update.items.items() if isinstance(update, Snapshot) else [(update.key, update.value)]
            )
            for key, value in items:
                self._note(key, value)

    def _note(self, key: str, value: bytes | None) -> None:
        if key.startswith(records.REPLICAS):
            name = key.rpartition("/")[2]
            state = "GONE"
            if value is not None:
                record = records.from_json(value, ReplicaRecord)
                state = ReplicaState.Name(record.state).removeprefix("REPLICA_STATE_")
                self.details[name] = record.detail
            self.states.setdefault(name, []).append(state)
            self.events.append((name, state))
        elif key.startswith(records.NODES):
            said = NodeRecord() if value is None else records.from_json(value, NodeRecord)
            state = "GONE" if value is None else "draining" if said.draining else "usable"
            self.events += [("keeps", str(len(said.keeps))), ("node", state)]


@asynccontextmanager
async def one_node(address: str, **settings: Any) -> AsyncIterator[RunningNode]:
    """A node on the etcd at `address`, with these settings."""
    config = StageConfig(device="cpu", memory=2**30, **settings)
    etcd, other = Etcd(address), Etcd(address)
    await etcd.start()
    await other.start()
    server = GrpcServer("127.0.0.1", 0)
    lease = await etcd.lease(5)
    record = NodeRecord(node_id="n1", memory_bytes=2**30, device="cpu")
    lag = LoopLag()
    node = Node(config, record, etcd, lease, lag)
    servicer = StageServicer(node.find, node.status)
    server.server.add_generic_rpc_handlers((servicer.handler(),))
    record.address = f"127.0.0.1:{await server.start([SERVICE])}"
    running = RunningNode(node, other, lease, server, record)
    tasks = [asyncio.create_task(running.follow()), asyncio.create_task(node.run())]
    try:
        yield running
    finally:
        await node.drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop(0)
        await etcd.close()
        await other.close()


async def until(condition: Callable[[], object], within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)
