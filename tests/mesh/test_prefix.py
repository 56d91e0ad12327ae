"""Two routers and two replicas of each stage: a prompt goes where its beginning is held, whoever sent that beginning."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh
from stagemesh.prefix import BLOCK

from .traffic import until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

# Long beginnings and one new token: what is spared outweighs whatever a replica measured in a bad moment.
PROMPTS, BLOCKS = 6, 24
# With four routes to choose from, so many prompts do not all take the same one.
MOST = 40


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(llama: Path) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(
        stages=2, replicas=1, routers=2, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30
    ) as mesh:
        await mesh.deploy(llama, "llama", stages=2, replicas=2, cache=False, policy="prefix_affinity")
        yield mesh


async def metric(address: str, name: str) -> float:
    async with httpx.AsyncClient(base_url=f"http://{address}") as http:
        page = (await http.get("/metrics")).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", page, re.MULTILINE))


async def test_a_router_that_never_saw_a_prompt_sends_it_where_it_was_computed(mesh: LocalMesh) -> None:
    rng = random.Random(1)
    beginnings: list[list[int]] = []

    async def ask(client: AsyncClient, beginning: list[int]) -> list[str]:
        prompt = [*beginning, *(rng.randrange(2, 500) for _ in range(5))]
        answer = await client.generate(
            "llama", token_ids=prompt, max_tokens=1, temperature=0, ignore_eos=True
        )
        return [hop.replica_id for hop in answer.route]

    first, second = mesh.http_addresses
    async with AsyncClient(mesh.grpc_addresses[0]) as one, AsyncClient(mesh.grpc_addresses[1]) as other:
        routes: list[list[str]] = []
        while len(routes) < PROMPTS or (len({tuple(route) for route in routes}) == 1 and len(routes) < MOST):
            beginnings.append([rng.randrange(2, 500) for _ in range(BLOCKS * BLOCK)])
            routes.append(await ask(one, beginnings[-1]))
        assert len({tuple(route) for route in routes}) > 1, "new prompts are balanced"
        blocks_held = len(beginnings) * BLOCKS

        async def heard() -> bool:
            blocks = [
                await metric(address, "stagemesh_router_prefix_blocks") for address in mesh.http_addresses
            ]
            return blocks == [blocks_held] * 2

        await until(heard, within_s=30)
        await asyncio.sleep(1.0)  # a block counts once: that of the other stage may still be on its way
        assert [await ask(other, beginning) for beginning in beginnings] == routes
    spared = "stagemesh_router_prefix_hit_tokens_total"
    assert await metric(second, spared) == blocks_held * BLOCK, (
        "on every stage: the head says what it began with"
    )
    assert await metric(first, spared) == 0
