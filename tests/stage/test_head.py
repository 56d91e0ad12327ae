"""The head's batching over real stages: the same tokens however prompts are cut, and no session waits for another's stage."""

import asyncio
import statistics
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from stagemesh.services.stage.depth import Depth
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh.checkpoint import inspect
from stagemesh.grpc_server import GrpcServer
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import NodeStatus, RouteHop
from tests.stage.two_stages import CUTS, Route, route_of, settled

pytestmark = pytest.mark.asyncio
LONG = [(7 * i) % 500 + 2 for i in range(300)]


@pytest.mark.parametrize("chunk_tokens", [512, 100, 7])
async def test_a_long_prompt_that_arrives_among_running_streams_changes_nobodys_tokens(
    llama: Path, chunk_tokens: int
) -> None:
    async with route_of(llama) as route:
        alone = await route.generate(LONG, 8)
        others = [await route.generate([s, s + 1], 60) for s in range(2, 8)]
    async with route_of(llama, chunk_tokens=chunk_tokens) as route:
        streams = [asyncio.create_task(route.generate([s, s + 1], 60, session=s)) for s in range(2, 8)]
        async with asyncio.timeout(10):
            while len(route.replicas[1].sessions) < len(streams):
                await asyncio.sleep(0.001)
        late = [asyncio.create_task(route.generate(LONG, 8, session=100 + i)) for i in range(3)]
        assert await asyncio.gather(*late) == [alone] * 3
        assert await asyncio.gather(*streams) == others
        await settled(route)


@asynccontextmanager
async def another_last_stage(llama: Path) -> AsyncIterator[tuple[Replica, RouteHop]]:
    """One more replica of the last stage, on a node of its own."""
    model = load_partition(llama, inspect(llama), task="generate", first=CUTS[1], end=CUTS[2])
    replica = Replica("other", "m", 1, model, 10**8)
    hosted = Hosted(Assignment(replica_id="other", model="m"), ReplicaRecord(), replica, None)
    server = GrpcServer("127.0.0.1", 0)
    server.server.add_generic_rpc_handlers((StageServicer({"other": hosted}.get, NodeStatus).handler(),))
    port = await server.start([SERVICE])
    try:
        yield replica, RouteHop(stage=1, replica_id="other", address=f"127.0.0.1:{port}")
    finally:
        await replica.close()
        await server.stop(0)


async def test_a_stage_that_hangs_holds_up_its_own_sessions_only(llama: Path) -> None:
    # Chunks so small that the prompts are more frames than any queue on the way holds.
    async with route_of(llama, chunk_tokens=7) as route, another_last_stage(llama) as (stuck, hop):
        expected = await route.generate(LONG, 20)
        go_on = threading.Event()
        hanging = asyncio.create_task(stuck.engine.run(go_on.wait))
        beside = Route(route.replicas, route.servers, [route.hops[0], hop], route.channel)
        waiting = [asyncio.create_task(beside.generate(LONG, 20, session=s)) for s in range(2, 20)]
        async with asyncio.timeout(10):
            while len(route.replicas[0].sessions) < len(waiting):
                await asyncio.sleep(0.001)
        try:
            assert await route.generate(LONG, 20) == expected
            assert not any(task.done() for task in waiting)
        finally:
            go_on.set()
        assert await asyncio.gather(*waiting) == [expected] * len(waiting)
        await hanging
        await settled(route)


@pytest.mark.parametrize("together", [1, 2])
async def test_the_head_keeps_as_many_micro_batches_as_were_found_best(
    llama: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Depth, "now", together)
    async with route_of(llama) as route:
        rows: list[int] = []
        forward = route.replicas[1].model.forward

        def counted(batch: Batch) -> Activations:
            rows.append(len(batch.segments))
            return forward(batch)

        route.replicas[1].model.forward = counted  # type: ignore[method-assign]
        await asyncio.gather(
            *(route.generate([5, 6, 7 + index], 40, session=1 + index) for index in range(4))
        )
        assert statistics.mode(rows) == 4 // together
