"""Processes of a mesh are killed, stopped and frozen under traffic; and clients leave in the middle of a stream."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from stagemesh import AsyncClient
from stagemesh.errors import DeadlineExceeded, Unavailable
from stagemesh.local import deployment
from stagemesh.local.mesh import LocalMesh
from stagemesh.local.processes import ChildProcess

from .traffic import PROMPTS, ask, loads, pids, ready_replicas, traffic, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

MEMORY = 2 * 2**30
ETCD_DOWN_S = 20.0
# Longer than a lease and the grace period after it: what would be dropped is dropped by then.
SETTLED_S = 12.0
# Enough to be hit in the middle.
LONG = 400


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wide(llama: Path) -> AsyncIterator[LocalMesh]:
    """Two replicas per stage; `llama` is cached, `plain` is not."""
    async with LocalMesh(stages=2, replicas=2, http_port=0, grpc_port=0, threads=1, memory=MEMORY) as mesh:
        await mesh.deploy(llama, "plain", cache=False, wait=False)
        await mesh.deploy(llama, "llama", wait=False)
        for name in ("plain", "llama"):
            await mesh.wait_ready(name, timeout_s=120)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def client(wide: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with wide.client() as client:
        yield client


async def expected(client: AsyncClient, model: str) -> list[tuple[int, ...]]:
    """What each prompt gives on the mesh as it is."""
    answers = [await ask(client, model, prompt) for prompt in range(len(PROMPTS))]
    assert all(answer.error is None for answer in answers)
    assert len({answer.tokens for answer in answers}) == len(PROMPTS)
    return [answer.tokens for answer in answers]


async def host_of(mesh: LocalMesh, client: AsyncClient, model: str, stage: int) -> ChildProcess:
    """The process of a node that hosts this stage of the model."""
    hosts = {r.pid for r in (await ready_replicas(client, model)).values() if r.stage == stage}
    return next(process for process in mesh.stage_processes if process.pid in hosts)


async def all_back(client: AsyncClient, model: str, replicas: int, without: int) -> bool:
    ready = await ready_replicas(client, model)
    return len(ready) == replicas and all(record.pid != without for record in ready.values())


async def twenty_in_a_row(client: AsyncClient, model: str, wanted: list[tuple[int, ...]]) -> None:
    for turn in range(20):
        answer = await ask(client, model, turn % len(PROMPTS))
        assert answer.error is None
        assert answer.tokens == wanted[answer.prompt]


# ---- clients that leave ----


async def _leave_the_stream(mesh: LocalMesh, client: AsyncClient) -> None:
    stream = client.stream("plain", token_ids=[5, 6], max_tokens=LONG, temperature=0, ignore_eos=True)
    await anext(stream)
    await stream.aclose()


async def _close_the_connection(mesh: LocalMesh, client: AsyncClient) -> None:
    async with mesh.client() as other:
        stream = other.stream("plain", token_ids=[5, 6], max_tokens=LONG, temperature=0, ignore_eos=True)
        await anext(stream)


async def _pass_the_deadline(mesh: LocalMesh, client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.generate(
            "plain", token_ids=[5, 6], max_tokens=LONG, temperature=0, ignore_eos=True, timeout_s=0.3
        )


async def _leave_over_http(mesh: LocalMesh, client: AsyncClient) -> None:
    body = {"model": "plain", "prompt": "ab", "max_tokens": LONG, "stream": True, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=f"http://{mesh.http_address}", timeout=30) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        assert response.status_code == 200
        await anext(response.aiter_bytes())


@pytest.mark.parametrize(
    "leave", [_leave_the_stream, _close_the_connection, _pass_the_deadline, _leave_over_http]
)
async def test_a_client_that_leaves_frees_its_session_on_every_stage(
    wide: LocalMesh, client: AsyncClient, leave
) -> None:
    await leave(wide, client)

    async def free() -> bool:
        return not any(
            item.load.sessions or item.load.kv_bytes_used for item in (await loads(client)).replicas
        )

    print(f"freed after {await until(free, within_s=5):.2f} s")


async def test_a_running_stream_is_seen_in_the_loads(client: AsyncClient) -> None:
    """So that the zeros above mean something."""
    stream = client.stream("plain", token_ids=[5, 6], max_tokens=LONG, temperature=0, ignore_eos=True)
    await anext(stream)
    busy = [item for item in (await loads(client)).replicas if item.load.sessions]
    assert {item.record.stage for item in busy} == {0, 1}
    assert all(item.load.kv_bytes_used > 0 for item in busy)
    await stream.generation()


# ---- stages ----


@pytest.mark.parametrize("stage", [0, 1])
async def test_a_killed_node_of_two_is_replaced_and_requests_go_on(
    wide: LocalMesh, client: AsyncClient, stage: int
) -> None:
    wanted = await expected(client, "plain")
    before = pids(wide)
    victim = await host_of(wide, client, "plain", stage)
    async with traffic(client, "plain") as seen:
        await seen.wait_for(6)
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        await seen.wait_for(10)
        print(f"back after {await until(lambda: all_back(client, 'plain', 4, victim.pid), 60):.1f} s")
        await seen.wait_for(6)
    assert [outcome.error for outcome in seen.failed] == []
    assert all(outcome.tokens == wanted[outcome.prompt] for outcome in seen.outcomes)
    assert seen.since(killed)
    print(f"{len(seen.outcomes)} answered, the slowest took {seen.longest_s:.1f} s")
    await twenty_in_a_row(client, "plain", wanted)
    after = pids(wide)
    gone = {name for name, pid in before.items() if pid not in after.values()}
    assert gone == {victim.name}
    await wide.wait_ready("llama", timeout_s=60)


@pytest.mark.long
async def test_a_killed_only_node_of_a_stage_is_replaced(llama: Path) -> None:
    async with (
        LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=MEMORY) as mesh,
        mesh.client() as client,
    ):
        await mesh.deploy(llama, "plain", cache=False, timeout_s=120)
        wanted = await expected(client, "plain")
        before = pids(mesh)
        victim = await host_of(mesh, client, "plain", 1)
        long = await client.generate("plain", token_ids=[5], max_tokens=LONG, temperature=0, ignore_eos=True)
        stream = client.stream("plain", token_ids=[5], max_tokens=LONG, temperature=0, ignore_eos=True)
        await anext(stream)
        async with traffic(client, "plain") as seen:
            victim.send_signal(signal.SIGKILL)
            # It waits for the replacement that the registry makes, and goes on.
            assert (await stream.generation()).token_ids == long.token_ids
            took = await until(lambda: all_back(client, "plain", 2, victim.pid), 60)
            await seen.wait_for(6)
        # Those that were asked for while the stage had no replica at all were told so at once.
        for outcome in seen.failed:
            assert isinstance(outcome.error, Unavailable)
            assert "stage 1" in outcome.error.message
        assert all(o.tokens == wanted[o.prompt] for o in seen.outcomes if o.error is None)
        print(f"back after {took:.1f} s, {len(seen.failed)} of {len(seen.outcomes)} told Unavailable")
        print(f"the slowest took {seen.longest_s:.1f} s")
        await twenty_in_a_row(client, "plain", wanted)
        gone = {name for name, pid in before.items() if pid not in pids(mesh).values()}
        assert gone == {victim.name}


# ---- etcd, cache, registry ----


@pytest.mark.long
async def test_etcd_stopped_for_20_s_fails_no_request(wide: LocalMesh, client: AsyncClient) -> None:
    wanted = await expected(client, "plain")
    assert wide.etcd_server is not None
    held = {model: await ready_replicas(client, model) for model in ("plain", "llama")}
    before = pids(wide)
    async with traffic(client, "plain") as seen:
        await seen.wait_for(3)
        await wide.etcd_server.stop()
        stopped = time.monotonic()
        await asyncio.sleep(ETCD_DOWN_S / 2)
        assert not (await client.status()).etcd_connected
        await asyncio.sleep(stopped + ETCD_DOWN_S - time.monotonic())
        assert len(await ready_replicas(client, "plain")) == 4
        await wide.etcd_server.start()

        async def connected() -> bool:
            return (await client.status()).etcd_connected

        print(f"connected again after {await until(connected, 30):.1f} s")
        await asyncio.sleep(SETTLED_S)
        await seen.wait_for(6)
    assert [outcome.error for outcome in seen.failed] == []
    assert len(seen.since(stopped)) > 20
    print(f"{len(seen.outcomes)} requests, the slowest took {seen.longest_s:.1f} s")
    # The same replicas in the same processes: nothing was loaded again.
    assert {model: await ready_replicas(client, model) for model in held} == held
    after = pids(wide)
    assert {name for name in before if before[name] != after[name]} == {"etcd"}
    await twenty_in_a_row(client, "plain", wanted)


async def _hits(client: AsyncClient) -> bool:
    answer = await ask(client, "llama", 0)
    assert answer.error is None
    return answer.cache == "hit"


async def test_a_killed_cache_is_passed_through_and_comes_back(wide: LocalMesh, client: AsyncClient) -> None:
    wanted = await expected(client, "llama")
    await until(lambda: _hits(client), 10)
    victim = wide.service_process("cache")
    async with traffic(client, "llama") as seen:
        await seen.wait_for(3)
        victim.send_signal(signal.SIGKILL)
        await until(lambda: wide.service_process("cache") is not victim, 30)
        killed = time.monotonic()
        await until(lambda: any(outcome.cache == "hit" for outcome in seen.since(killed)), 30)
    assert [outcome.error for outcome in seen.failed] == []
    assert {outcome.cache for outcome in seen.outcomes} >= {"hit", "error"}
    assert all(outcome.tokens == wanted[outcome.prompt] for outcome in seen.outcomes)


async def test_a_frozen_cache_is_passed_through(wide: LocalMesh, client: AsyncClient) -> None:
    await expected(client, "llama")
    await until(lambda: _hits(client), 10)
    cache = wide.service_process("cache")
    async with traffic(client, "llama") as seen:
        cache.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            await asyncio.sleep(8)  # beyond its lease
            await seen.wait_for(3)
            thawed = time.monotonic()
        finally:
            cache.send_signal(signal.SIGCONT)
        await until(lambda: any(outcome.cache == "hit" for outcome in seen.since(thawed)), 30)
    assert [outcome.error for outcome in seen.failed] == []
    meanwhile = [o for o in seen.since(frozen) if o.ended < thawed]
    # Routers still have copies, for a while.
    assert {outcome.cache for outcome in meanwhile} <= {"error", "bypass", "hit"}
    assert {outcome.cache for outcome in meanwhile} & {"error", "bypass"}
    print({o.cache for o in meanwhile}, f"slowest {max(o.ended - o.began for o in meanwhile):.2f} s")
    assert wide.service_process("cache") is cache


async def test_traffic_goes_on_without_the_registry_and_it_scales_when_back(
    wide: LocalMesh, client: AsyncClient
) -> None:
    held = set(await ready_replicas(client, "plain"))
    victim = wide.service_process("registry")
    async with traffic(client, "plain") as seen:
        victim.send_signal(signal.SIGKILL)
        await seen.wait_for(10)
        await until(lambda: wide.service_process("registry") is not victim, 30)

        async def scaled(replicas: int) -> bool:
            try:
                await deployment.scale(wide.registry_address, "plain", replicas, 1)
            except Unavailable:
                return False
            return True

        await until(lambda: scaled(1), 30)

        async def left() -> bool:
            return len(await ready_replicas(client, "plain")) == 3

        await until(left, 30)
        assert set(await ready_replicas(client, "plain")) < held
        await deployment.scale(wide.registry_address, "plain", 2, 1)
        await wide.wait_ready("plain", timeout_s=60)
        await seen.wait_for(6)
    assert [outcome.error for outcome in seen.failed] == []
    assert len(await ready_replicas(client, "plain")) == 4
