"""Hundreds of clients leave at random moments, by every door: nothing of what they held is left anywhere."""

import asyncio
import random
import re
import time

import httpx
import pytest

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local.mesh import LocalMesh

from .traffic import PROMPTS, loads, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

MODEL = "llama"
CANCELS = 300
LATEST_S = 2.0
NEW = 200
GAUGES = ("stagemesh_sessions_active", "stagemesh_sessions_waiting")


async def by_grpc_stream(client: AsyncClient, http: httpx.AsyncClient, prompt: list[int]) -> None:
    async for _ in client.stream(MODEL, token_ids=prompt, max_tokens=NEW, temperature=0, ignore_eos=True):
        pass


async def by_grpc(client: AsyncClient, http: httpx.AsyncClient, prompt: list[int]) -> None:
    await client.generate(MODEL, token_ids=prompt, max_tokens=NEW, temperature=1.0, ignore_eos=True)


async def by_http(client: AsyncClient, http: httpx.AsyncClient, prompt: list[int]) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW, "ignore_eos": True}
    await http.post("/v1/completions", json=body)


async def by_http_stream(client: AsyncClient, http: httpx.AsyncClient, prompt: list[int]) -> None:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW, "ignore_eos": True, "stream": True, "n": 2}
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for _ in response.aiter_bytes():
            pass


WAYS = (by_grpc_stream, by_grpc, by_http, by_http_stream)


async def counted(http: httpx.AsyncClient) -> dict[str, float]:
    """Requests that came to nothing, sessions that a head was chosen for, tokens sent to clients, of this model."""
    page = (await http.get("/metrics")).text

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)", page, re.MULTILINE))

    return {
        "cancelled": total(rf'stagemesh_requests_total{{code="CANCELLED",model="{MODEL}"}}'),
        "routed": total(rf'stagemesh_route_sessions_total{{model="{MODEL}",replica="[^"]*",stage="0"}}'),
        "tokens": total(rf'stagemesh_tokens_generated_total{{model="{MODEL}"}}'),
    }


async def held(client: AsyncClient, http: httpx.AsyncClient) -> dict[str, float]:
    """What is in use anywhere, by name; empty when nothing is."""
    page = (await http.get("/metrics")).text
    found = {name: float(re.search(rf"^{name} (\S+)", page, re.MULTILINE)[1]) for name in GAUGES}
    for item in (await loads(client)).replicas:
        name = item.record.replica_id
        found[f"{name} sessions"] = item.load.sessions
        found[f"{name} KV bytes"] = item.load.kv_bytes_used
        found[f"{name} of the router's"] = item.sessions_active
    return {name: value for name, value in found.items() if value}


async def test_random_cancels_leave_nothing_behind(mesh: LocalMesh, client: AsyncClient) -> None:
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}")
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://{mesh.http_address}", timeout=60, limits=limits) as http:

        async def free() -> bool:
            return not await held(client, http)

        await until(free, within_s=20)
        before = await counted(http)
        ends: dict[str, int] = {}

        async def one(way: object, prompt: list[int], after: float) -> None:
            asking = asyncio.create_task(way(client, http, prompt))  # type: ignore[operator]
            done, _ = await asyncio.wait({asking}, timeout=after)
            asking.cancel()
            (result,) = await asyncio.gather(asking, return_exceptions=True)
            assert not isinstance(result, BaseException) or isinstance(
                result, asyncio.CancelledError | StagemeshError | httpx.HTTPError
            ), result
            end = "answered" if done else "left"
            ends[end] = ends.get(end, 0) + 1

        async with asyncio.TaskGroup() as group:
            for _ in range(CANCELS):
                prompt = [rng.randrange(5, 500) for _ in range(rng.choice([3, 40, 300]))]
                group.create_task(one(rng.choice(WAYS), prompt, rng.uniform(0, LATEST_S)))
        left_at = time.monotonic()
        # The others were served, or refused at the door, before they would have left: how many, the machine decides.
        assert ends["left"] >= CANCELS / 5, ends
        try:
            await until(free, within_s=5)
        except TimeoutError:
            pytest.fail(f"seed {seed}: still in use: {await held(client, http)}")
        counts = {name: int(value - before[name]) for name, value in (await counted(http)).items()}
        # Many had come to the router, and some were in the middle of their answers: how many, the machine decides.
        assert counts["cancelled"] >= CANCELS / 20, counts
        assert counts["routed"] >= CANCELS / 20, counts
        assert counts["tokens"] > 0, counts
        print(f"{counts}, {ends}, all free {time.monotonic() - left_at:.2f} s after the last one left")
    whole = await client.generate(MODEL, token_ids=PROMPTS[0], max_tokens=8, temperature=0, ignore_eos=True)
    assert len(whole.token_ids) == 8
