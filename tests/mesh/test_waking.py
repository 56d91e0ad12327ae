"""A model that sleeps: the request that wakes it is held and answered, and the second time its weights are still there."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from stagemesh.local.mesh import LocalMesh
from stagemesh.v1.registry_pb2 import Scaling

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

PROMPT = {"token_ids": [5, 6, 7], "max_tokens": 6, "temperature": 0.0, "ignore_eos": True}


async def test_a_model_wakes_for_a_request_and_from_what_was_kept(llama: Path) -> None:
    async with (
        LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2**30) as mesh,
        mesh.client() as client,
        httpx.AsyncClient(base_url=f"http://{mesh.http_address}") as http,
    ):
        await mesh.deploy(llama, "m", cache=False, scaling=Scaling(min_replicas=0, max_replicas=1, idle_s=1))
        expected = (await client.generate("m", **PROMPT)).token_ids

        async def asleep() -> bool:
            (model,) = (await client.status()).models
            return model.asleep and not (await client.status()).replicas

        async def sleeps() -> None:
            async with asyncio.timeout(30):
                while not await asleep():
                    await asyncio.sleep(0.1)

        for _ in range(2):
            await sleeps()
            # It is still listed, says that it sleeps, and the router is well.
            (listed,) = (await http.get("/v1/models")).json()["data"]
            assert (listed["id"], listed["ready"], listed["asleep"]) == ("m", False, True)
            assert (await http.get("/health")).status_code == 200
            # Several at once: one of them wakes it, all are answered.
            answers = await asyncio.gather(*(client.generate("m", **PROMPT) for _ in range(3)))
            assert [answer.token_ids for answer in answers] == [expected] * 3
        logs = "".join(process.log_path.read_text() for process in mesh.stage_processes)
        # Loaded when it was deployed, and attached as it was each time since: twice, or oftener on a slow machine.
        assert len(re.findall(r"replica\.LOADING m-", logs)) == 2
        assert len(re.findall(r"replica\.READY m-", logs)) >= 6
        metrics = (await http.get("/metrics")).text
        woken = re.search(r'stagemesh_model_wake_seconds_count\{model="m"\} (\S+)', metrics)
        assert woken
        assert float(woken[1]) >= 2
