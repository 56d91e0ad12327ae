"""One large batch over two stages of two replicas: shared, in order, and whole when a node dies under it."""

import asyncio
import signal

import numpy as np
import pytest

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh

from .conftest import ENCODER
from .traffic import ready_replicas

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

ROWS, WIDTH = 480, 24
OUTPUTS = ["sentence_embedding", "last_hidden_state"]


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(WIDTH)[None] < rng.integers(1, WIDTH + 1, ROWS)[:, None]
    return {"input_ids": rng.integers(1000, 2000, (ROWS, WIDTH)) * mask, "attention_mask": mask}


async def ask(client: AsyncClient, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return await client.infer("minilm", inputs, OUTPUTS, timeout_s=100)


async def routed(client: AsyncClient) -> dict[str, int]:
    return {each.record.replica_id: each.sessions_routed for each in (await client.status()).replicas}


async def test_a_large_batch_is_shared_and_survives_a_killed_node() -> None:
    inputs = batch()
    async with (
        LocalMesh(stages=2, replicas=2, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30) as mesh,
        mesh.client() as client,
    ):
        await mesh.deploy(ENCODER, "minilm", cache=False, force=True, timeout_s=120)
        # Each row alone has nothing to be mistaken for.
        some = [0, 1, 7, ROWS // 2, ROWS - 1]
        alone = [
            await ask(client, {name: each[row : row + 1] for name, each in inputs.items()}) for row in some
        ]
        before = await routed(client)
        whole = await ask(client, inputs)
        after = await routed(client)
        for row, one in zip(some, alone, strict=True):
            for name in OUTPUTS:
                np.testing.assert_allclose(whole[name][row], one[name][0], rtol=1e-4, atol=1e-5)
        assert not whole["last_hidden_state"][~inputs["attention_mask"]].any()
        assert all(after[replica] - before[replica] >= 3 for replica in after), (before, after)

        hosts = {each.pid for each in (await ready_replicas(client, "minilm")).values() if each.stage == 1}
        victim = next(process for process in mesh.stage_processes if process.pid in hosts)
        under_way = asyncio.create_task(ask(client, inputs))
        async with asyncio.timeout(30):
            while not all(count > after[each] for each, count in (await routed(client)).items()):
                await asyncio.sleep(0.005)
        assert not under_way.done()
        victim.send_signal(signal.SIGKILL)
        survived = await under_way
        for name in OUTPUTS:
            np.testing.assert_allclose(survived[name], whole[name], rtol=1e-4, atol=1e-5)
