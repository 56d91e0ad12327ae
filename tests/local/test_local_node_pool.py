"""Nodes of this machine follow the number that stands in etcd: real etcd, real processes that sleep."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.local.node_pool import NodePool
from stagemesh.local.processes import ChildProcess
from stagemesh.local.supervisor import Supervised
from stagemesh.v1.registry_pb2 import CapacityRecord


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[tuple[Etcd, str]]:
    server = EtcdServer(tmp_path)
    await server.start()
    client = Etcd(server.endpoint)
    await client.start()
    yield client, server.endpoint
    await client.close()
    await server.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def _maker(folder: Path) -> Callable[[int], Supervised]:
    def make(index: int) -> Supervised:
        async def start(restarts: int) -> ChildProcess:
            argv = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
            return await ChildProcess.start(f"node-{index}", argv, folder / f"node-{index}.log", {})

        return Supervised(f"node-{index}", start, lambda line: None)

    return make


async def _ask(etcd: Etcd, nodes: int) -> None:
    await etcd.put(records.CAPACITY, records.to_json(CapacityRecord(nodes=nodes, reason="the test says so")))


async def test_nodes_come_and_go_within_their_bounds(etcd: tuple[Etcd, str], tmp_path: Path) -> None:
    client, endpoint = etcd
    make = _maker(tmp_path)
    nodes = [make(0)]
    await nodes[0].start()
    lines: list[str] = []
    pool = NodePool(1, 3)
    assert pool.flags == {"node-pool": "etcd", "min-nodes": 1, "max-nodes": 3}
    await pool.start(endpoint, nodes, make, 5.0, lines.append)
    try:
        await _ask(client, 9)
        await _until(lambda: len(nodes) == 3)
        assert [node.name for node in nodes] == ["node-0", "node-1", "node-2"]
        started = [node.process for node in nodes]
        assert all(process is not None and process.returncode is None for process in started)
        # What nobody can read is passed over.
        await client.put(records.CAPACITY, b"not a record")
        await _ask(client, 0)
        await _until(lambda: len(nodes) == 1 and len(lines) == 4)
        assert nodes[0].process is started[0]
        assert all(process is not None and process.returncode is not None for process in started[1:])
        # What is away is no wish.
        await client.delete(records.CAPACITY)
        await _ask(client, 2)
        await _until(lambda: len(nodes) == 2)
    finally:
        await pool.stop()
        await asyncio.gather(*(node.stop(5.0) for node in nodes))


async def test_without_room_to_grow_nothing_is_followed(etcd: tuple[Etcd, str]) -> None:
    _, endpoint = etcd
    pool = NodePool(2, 0)
    assert pool.flags == {}
    assert pool.most == 2
    await pool.start(endpoint, [], _never, 1.0, print)
    assert "0 of 0" in repr(pool)
    await pool.stop()


def _never(index: int) -> Supervised:
    raise AssertionError("nobody asked for it")
