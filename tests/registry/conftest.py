import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.ports import free_port
from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_READY,
    Assignment,
    NodeRecord,
    ReplicaRecord,
    ReplicaState,
)
from stagemesh.v1.registry_pb2_grpc import RegistryServiceStub

MIB = 2**20


class RegistryProcess:
    """A real registry process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = RegistryServiceStub(self.channel)

    def kill(self) -> None:
        self.process.kill()

    async def close(self) -> None:
        await self.channel.close()
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 20)

    def led(self) -> bool:
        return "registry.leader gained" in self.log.read_text()


class FakeNode:
    """A node as the registry sees it: records in etcd, under a lease, following its assignments."""

    def __init__(self, etcd: Etcd, node_id: str, memory: int = 64 * MIB) -> None:
        self.etcd, self.node_id, self.memory = etcd, node_id, memory
        # What becomes of a replica that the node is told to load.
        self.outcome: Callable[[Assignment], ReplicaState] = lambda assignment: REPLICA_STATE_READY
        self.assigned: dict[str, Assignment] = {}
        self.ever: set[str] = set()

    async def start(self) -> None:
        self.lease = await self.etcd.lease(2)
        record = NodeRecord(
            node_id=self.node_id, address="127.0.0.1:1", device="cpu", memory_bytes=self.memory
        )
        await self.lease.put(records.node_key(self.node_id), records.to_json(record))
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        prefix = records.assignments_of(self.node_id)
        async for event in self.etcd.watch(prefix):
            if hasattr(event, "items"):
                items: dict[str, bytes | None] = dict(event.items)
            else:
                items = {event.key: event.value}
            for key, value in items.items():
                replica_id = key.removeprefix(prefix)
                if value is None:
                    gone = self.assigned.pop(replica_id)
                    await self.lease.delete(records.replica_key(gone.model, gone.stage, replica_id))
                    continue
                found = records.from_json(value, Assignment)
                self.assigned[replica_id] = found
                self.ever.add(replica_id)
                replica = ReplicaRecord(
                    replica_id=replica_id,
                    model=found.model,
                    revision=found.revision,
                    stage=found.stage,
                    stages=found.stages,
                    node_id=self.node_id,
                    state=self.outcome(found),
                )
                key = records.replica_key(found.model, found.stage, replica_id)
                await self.lease.put(key, records.to_json(replica))

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.lease.revoke()

    def stages(self) -> list[int]:
        return sorted(assignment.stage for assignment in self.assigned.values())


@pytest.fixture
async def etcd_server(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(tmp_path)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def etcd(etcd_server: EtcdServer) -> AsyncIterator[Etcd]:
    client = Etcd(etcd_server.endpoint)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def start_registry(
    etcd_server: EtcdServer, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[RegistryProcess]]]:
    started: list[RegistryProcess] = []

    async def start(*flags: str) -> RegistryProcess:
        port = free_port()
        log = tmp_path / f"registry-{port}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "stagemesh.services.registry",
                "--port", str(port), "--etcd", etcd_server.endpoint, "--lease-ttl-s", "2",
                "--failed-backoff-s", "0.5", *flags,
                stdout=out, stderr=out, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        registry = RegistryProcess(process, port, log)
        started.append(registry)
        await asyncio.wait_for(registry.channel.channel_ready(), 30)
        return registry

    yield start
    for registry in started:
        await registry.close()
        assert not re.search("Traceback", registry.log.read_text()), registry.log.read_text()


@pytest.fixture
async def start_node(etcd: Etcd) -> AsyncIterator[Callable[..., Awaitable[FakeNode]]]:
    started: list[FakeNode] = []

    async def start(node_id: str, memory: int = 64 * MIB) -> FakeNode:
        node = FakeNode(etcd, node_id, memory)
        await node.start()
        started.append(node)
        return node

    yield start
    for node in started:
        await node.stop()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait until a condition holds; at most 20 s."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.02)

    return wait
