"""A node is killed under stateless traffic: its micro-batches are answered along other routes."""

import asyncio
import signal
from pathlib import Path

import numpy as np
import pytest

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local.mesh import LocalMesh

from .traffic import ready_replicas

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

INPUTS = [np.arange(1, 4 + 3 * n, dtype=np.int64)[None] for n in range(4)]


async def ask(client: AsyncClient, turn: int) -> np.ndarray:
    return (await client.infer("plain", {"input_ids": INPUTS[turn % len(INPUTS)]}, timeout_s=40))["logits"]


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1])
async def test_no_request_is_lost_with_a_killed_node_of_two(llama: Path, stage: int) -> None:
    async with (
        LocalMesh(stages=2, replicas=2, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30) as mesh,
        mesh.client() as client,
    ):
        await mesh.deploy(llama, "plain", cache=False, timeout_s=120)
        wanted = [await ask(client, turn) for turn in range(len(INPUTS))]
        failed: list[StagemeshError] = []
        answered = 0
        over = asyncio.Event()

        async def work(turn: int) -> None:
            nonlocal answered
            while not over.is_set():
                try:
                    np.testing.assert_allclose(
                        await ask(client, turn), wanted[turn % 4], rtol=1e-3, atol=1e-4
                    )
                    answered += 1
                except StagemeshError as error:
                    failed.append(error)
                turn += 1

        async def more(answers: int) -> None:
            goal = answered + answers
            async with asyncio.timeout(60):
                while answered < goal and not all(worker.done() for worker in workers):
                    await asyncio.sleep(0.02)

        workers = [asyncio.create_task(work(turn)) for turn in range(8)]
        await more(100)
        hosts = {r.pid for r in (await ready_replicas(client, "plain")).values() if r.stage == stage}
        victim = next(process for process in mesh.stage_processes if process.pid in hosts)
        victim.send_signal(signal.SIGKILL)
        await more(300)
        over.set()
        await asyncio.gather(*workers)
        assert failed == []
