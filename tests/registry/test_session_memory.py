"""What a node keeps for sessions is not free: counted where it is told, and seen on a real stage process with a memory limit."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from in_process import node_of, spec_of
from stagemesh.services.registry.board import Board
from stagemesh.services.registry.room import check_room
from stagemesh.services.registry.scaling_view import View
from test_registry_process import DEMO
from test_room import world_of

from stagemesh.errors import ResourceExhausted
from stagemesh.planning.live import taken_bytes
from stagemesh.v1.registry_pb2 import (
    REPLICA_STATE_READY,
    Deployment,
    DeployRequest,
    ListDeploymentsRequest,
    UndeployRequest,
)


def test_memory_of_sessions_counts_once_a_replica_is_loaded() -> None:
    demo = spec_of("demo", 1, 1, 1000)
    world = world_of({"a": 4000}, demo, held=[("a", "demo", 0)])
    assert Board(world).free_bytes(world.nodes["a"]) == 2800
    check_room(world, spec_of("m", 1, 1, 1500))
    world.replicas["r0"].kv_bytes_total = 100
    assert Board(world).free_bytes(world.nodes["a"]) == 2800, "it lies within the headroom"
    world.replicas["r0"].kv_bytes_total = 1500
    assert Board(world).free_bytes(world.nodes["a"]) == 1500
    (box,) = View(world).boxes(lambda replica_id: 0.0)
    assert box.free == 1500
    with pytest.raises(ResourceExhausted) as caught:
        check_room(world, spec_of("m", 1, 1, 1500))
    assert "a has 1500 bytes of 4000 bytes free; held by demo 2500 bytes, 1500 of them for sessions. " in (
        caught.value.message
    )
    check_room(world, spec_of("m", 1, 1, 1200))
    # `stagemesh plan` on a running mesh says the same.
    record = world.replicas["r0"]
    record.node_id, record.revision = "a", demo.revision
    record.partition.CopyFrom(demo.partitions[0])
    assert taken_bytes([record], [demo], [node_of("a", 4000)]) == {"a": 2500}


def test_what_is_computed_in_a_wider_dtype_counts_so() -> None:
    demo = spec_of("demo", 1, 1, 1000)
    demo.checkpoint_dtype = "BF16"
    world = world_of({"a": 9000}, demo, held=[("a", "demo", 0)])
    world.replicas["r0"].kv_bytes_total = 3000
    assert Board(world).used_bytes(world.nodes["a"]) == 5000
    on_gpu = replace(world, nodes={"a": node_of("a", 9000)})
    on_gpu.nodes["a"].device = "cuda:0"
    assert Board(on_gpu).used_bytes(on_gpu.nodes["a"]) == 4000


async def test_a_node_with_a_limit_takes_what_the_registry_gives_it(
    etcd_server, start_registry, tmp_path: Path
) -> None:
    """The demo takes 21 MB in F32 and gets half of what is left for its sessions: beside it a second one fits by weights only."""
    registry = await start_registry()
    log = (tmp_path / "stage.log").open("wb")
    stage = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stagemesh.services.stage", "--port", "0", "--node-id", "n0", "--threads", "1",
        "--etcd", etcd_server.endpoint, "--memory", str(52_000_000), "--drain-s", "0",
        "--data-dir", str(tmp_path / "stage"),
        stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip

    async def look(name: str) -> Deployment:
        found = (await registry.stub.ListModels(ListDeploymentsRequest())).deployments
        return next(each for each in found if each.model.name == name)

    async def serves(name: str) -> None:
        async with asyncio.timeout(60):
            while [each.state for each in (await look(name)).replicas] != [REPLICA_STATE_READY]:
                await asyncio.sleep(0.05)

    try:
        await registry.stub.Deploy(DeployRequest(source=DEMO, name="first", stages=1))
        await serves("first")
        kept = (await look("first")).replicas[0].kv_bytes_total
        assert kept > 10_000_000
        second = DeployRequest(source=DEMO, name="second", stages=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.stub.Deploy(second)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{kept} of them for sessions" in caught.value.details()
        # What may wait is not put there either, to fail again and again, and comes when there is room.
        second.allow_pending = True
        await registry.stub.Deploy(second)
        async with asyncio.timeout(20):
            while not (await look("second")).pending:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert not (await look("second")).replicas
        await registry.stub.Undeploy(UndeployRequest(name="first"))
        await serves("second")
    finally:
        stage.terminate()
        await asyncio.wait_for(stage.wait(), 30)
        log.close()
