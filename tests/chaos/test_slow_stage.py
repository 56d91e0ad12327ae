"""One stage becomes ten times slower than the others: what waits for it stays bounded, and nothing fails."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from stagemesh.services.stage.link import OUTBOX
from stagemesh.services.stage.relay import WINDOW

from stagemesh import AsyncClient
from stagemesh.grpc_server import create_channel
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1 import stage_pb2, stage_pb2_grpc
from stagemesh.v1.tensor_pb2 import Tensor
from tests.checkpoints import make_llama

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio]

HIDDEN = 128
LENGTHS = [256] * 16
FRAME_BYTES = sum(LENGTHS) * HIDDEN * 4
# Many times what may wait at once.
FORWARDS = 160
SESSIONS = 16
SLOW_S = 8.0
# Of every period the slow process runs this share.
PERIOD_S, SHARE = 0.1, 0.1
# Allocators, passes that run, answers on their way.
ALLOWED_BYTES = 2 * (WINDOW + OUTBOX) * FRAME_BYTES + 64 * 2**20


@contextlib.asynccontextmanager
async def slowed(pid: int) -> AsyncIterator[None]:
    """The process is stopped for most of each period, and runs on afterwards."""

    async def stutter() -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(PERIOD_S * (1 - SHARE))
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(PERIOD_S * SHARE)
        finally:
            os.kill(pid, signal.SIGCONT)

    task = asyncio.create_task(stutter())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def process_at(mesh: LocalMesh, address: str) -> psutil.Process:
    """The stage process that listens there."""
    port = int(address.rsplit(":", 1)[1])
    for child in mesh.stage_processes:
        process = psutil.Process(child.pid)
        if any(c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections("tcp")):
            return process
    raise AssertionError(f"nobody listens at {address}")


class Watch:
    """The most that each process and each queue ever held while it was watched."""

    def __init__(self, mesh: LocalMesh, channels: list[grpc.aio.Channel]) -> None:
        self._processes = [psutil.Process(child.pid) for child in mesh.processes]
        self._stubs = [stage_pb2_grpc.StageServiceStub(channel) for channel in channels]
        self._before = [process.memory_info().rss for process in self._processes]
        self.grown_bytes = 0
        self.queue_depth = 0
        self.looks = 0

    async def look(self) -> None:
        """Look once."""
        for process, before in zip(self._processes, self._before, strict=True):
            self.grown_bytes = max(self.grown_bytes, process.memory_info().rss - before)
        for stub in self._stubs:
            status = await stub.GetNodeStatus(stage_pb2.GetNodeStatusRequest(), timeout=20)
            self.queue_depth = max(self.queue_depth, *(p.load.queue_depth for p in status.partitions))
        self.looks += 1


@pytest.mark.long
async def test_a_stage_ten_times_slower_than_the_others_bounds_what_waits_for_it(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30)
        )
        await mesh.deploy(make_llama(tmp_path / "llama"), "llama", stages=2, replicas=1, cache=False)
        client: AsyncClient = await stack.enter_async_context(mesh.client())
        found = await client.generate("llama", token_ids=[5, 6], max_tokens=2, temperature=0, ignore_eos=True)
        hops = [
            stage_pb2.RouteHop(stage=h.stage, replica_id=h.replica_id, address=h.address) for h in found.route
        ]
        channels = [await stack.enter_async_context(create_channel(hop.address)) for hop in hops]
        head = stage_pb2_grpc.StageServiceStub(channels[0])

        async def forward() -> int:
            """One stateless batch of megabytes at the head; bytes of its answer."""
            ids = Tensor(name="input_ids", dtype="I64", shape=[sum(LENGTHS)], data=bytes(8 * sum(LENGTHS)))
            request = stage_pb2.ForwardRequest(
                session=random.getrandbits(63) | 1,
                model="llama",
                route=hops,
                lengths=LENGTHS,
                inputs=[ids],
                outputs=["last_hidden_state"],
            )
            answer = await head.Forward(request, timeout=240)
            return len(answer.outputs[0].data)

        async def session(number: int) -> tuple[int, ...]:
            answer = await client.generate(
                "llama", token_ids=[5 + number], max_tokens=60, temperature=0, ignore_eos=True, timeout_s=240
            )
            return answer.token_ids

        expected = [await session(number) for number in range(SESSIONS)]
        await asyncio.gather(*(forward() for _ in range(2 * WINDOW)))

        watch = Watch(mesh, channels)
        forwards = [asyncio.create_task(forward()) for _ in range(FORWARDS)]
        sessions = [asyncio.create_task(session(number)) for number in range(SESSIONS)]
        async with slowed(process_at(mesh, hops[1].address).pid):
            async with asyncio.timeout(60):
                end = asyncio.get_running_loop().time() + SLOW_S
                while asyncio.get_running_loop().time() < end:
                    await watch.look()
                    await asyncio.sleep(0.2)
            assert not all(task.done() for task in forwards), "it was not slow"
        async with asyncio.timeout(240):
            answers = await asyncio.gather(*forwards)
            tokens = await asyncio.gather(*sessions)
        assert answers == [FRAME_BYTES] * FORWARDS
        assert tokens == expected
        assert watch.looks >= 5
        assert watch.queue_depth <= WINDOW + SESSIONS
        assert watch.grown_bytes < ALLOWED_BYTES < FORWARDS * FRAME_BYTES
        await asyncio.gather(*(forward() for _ in range(WINDOW)))
