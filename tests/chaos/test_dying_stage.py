"""A replica of any stage dies or freezes while many streams run through it: no request fails, and no token differs."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh
from stagemesh.local.processes import ChildProcess
from tests.checkpoints import make_llama
from tests.mesh.traffic import ready_replicas, until

from .streams import TOKENS, Stream, streams

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]

STREAMS = 24
STAGES, REPLICAS = 3, 2
SEED = int(os.environ.get("STAGEMESH_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    llama: Path = make_llama(tmp_path_factory.mktemp("llama"))
    async with LocalMesh(
        stages=STAGES, replicas=REPLICAS, http_port=0, grpc_port=0, threads=1, memory=2**30
    ) as mesh:
        await mesh.deploy(llama, "m", cache=False, timeout_s=120)
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client() as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def golden(client: AsyncClient) -> list[list[int]]:
    """What every stream gives when nothing happens."""
    calm = await streams(client, "m", STREAMS)
    assert [each.error for each in calm] == [None] * STREAMS
    assert all(len(each.tokens) == TOKENS for each in calm)
    return [each.tokens for each in calm]


async def host_of(mesh: LocalMesh, client: AsyncClient, stage: int, rng: random.Random) -> ChildProcess:
    hosts = {r.pid for r in (await ready_replicas(client, "m")).values() if r.stage == stage}
    return rng.choice([process for process in mesh.stage_processes if process.pid in hosts])


async def all_ready(client: AsyncClient) -> bool:
    return len(await ready_replicas(client, "m")) == STAGES * REPLICAS


def under_way(all_: list[Stream], share: float) -> bool:
    return sum(len(each.tokens) for each in all_) >= share * STREAMS * TOKENS


def say(began: float, line: str) -> None:
    print(f"{time.monotonic() - began:7.2f} s  {line}")


def judge(all_: list[Stream], golden: list[list[int]], began: float) -> None:
    stalls = sorted(each.stall_s for each in all_)
    say(
        began,
        f"streams ended; longest pause of a stream: median {stalls[len(all_) // 2]:.2f} s, all {stalls[-1]:.2f} s",
    )
    assert [each.error for each in all_] == [None] * STREAMS
    assert [each.tokens for each in all_] == golden


@pytest.mark.parametrize("stage", range(STAGES))
async def test_a_replica_is_killed(
    mesh: LocalMesh, client: AsyncClient, golden: list[list[int]], stage: int
) -> None:
    rng = random.Random(f"{SEED}-kill-{stage}")
    await until(lambda: all_ready(client), 60)
    victim = await host_of(mesh, client, stage, rng)
    share = rng.uniform(0.1, 0.6)
    print(f"\nSTAGEMESH_CHAOS_SEED={SEED}")
    began = time.monotonic()
    say(began, f"{STREAMS} streams of {TOKENS} tokens over {STAGES} stages x {REPLICAS} replicas")

    async def kill(all_: list[Stream]) -> None:
        await until(lambda: under_way(all_, share), 60)
        victim.send_signal(signal.SIGKILL)
        say(began, f"SIGKILL {victim.name}, a replica of stage {stage}, at {share:.0%} of the tokens")

    judge(await streams(client, "m", STREAMS, kill), golden, began)


async def test_two_replicas_of_different_stages_are_killed_at_once(
    mesh: LocalMesh, client: AsyncClient, golden: list[list[int]]
) -> None:
    rng = random.Random(f"{SEED}-two")
    await until(lambda: all_ready(client), 60)
    first, second = rng.sample(range(STAGES), 2)
    victims = {await host_of(mesh, client, stage, rng) for stage in (first, second)}
    left = [
        r
        for r in (await ready_replicas(client, "m")).values()
        if r.pid not in {victim.pid for victim in victims}
    ]
    print(f"\nSTAGEMESH_CHAOS_SEED={SEED}")
    began = time.monotonic()
    say(began, f"replicas that stay: {sorted(r.replica_id for r in left)}")

    async def kill(all_: list[Stream]) -> None:
        await until(lambda: under_way(all_, 0.3), 60)
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
            say(began, f"SIGKILL {victim.name}")

    judge(await streams(client, "m", STREAMS, kill), golden, began)


async def test_nodes_are_restarted_in_turn(
    mesh: LocalMesh, client: AsyncClient, golden: list[list[int]]
) -> None:
    """SIGTERM, as a rolling update does it: each goes when the one before is back."""
    await until(lambda: all_ready(client), 60)
    began = time.monotonic()
    # Each second one: half of a rolling restart has every order of events that the whole has.
    names = [process.name for process in mesh.stage_processes][::2]
    before = {process.pid for process in mesh.stage_processes if process.name in names}
    restarted = asyncio.Event()

    async def restart() -> None:
        for name in names:
            await until(lambda: all_ready(client), 60)
            victim = next(process for process in mesh.stage_processes if process.name == name)
            victim.send_signal(signal.SIGTERM)
            say(began, f"SIGTERM {name}")
            await until(lambda victim=victim: victim.pid not in {p.pid for p in mesh.stage_processes}, 60)
        restarted.set()

    task = asyncio.create_task(restart())
    rounds = 0
    while not restarted.is_set() and not task.done():
        judge(await streams(client, "m", STREAMS), golden, began)
        rounds += 1
    await task
    say(began, f"{rounds} rounds of {STREAMS} streams")
    assert not before & {process.pid for process in mesh.stage_processes}


async def test_a_replica_freezes(mesh: LocalMesh, client: AsyncClient, golden: list[list[int]]) -> None:
    rng = random.Random(f"{SEED}-freeze")
    stage = rng.randrange(STAGES)
    await until(lambda: all_ready(client), 60)
    victim = await host_of(mesh, client, stage, rng)
    print(f"\nSTAGEMESH_CHAOS_SEED={SEED}")
    began = time.monotonic()

    async def freeze(all_: list[Stream]) -> None:
        await until(lambda: under_way(all_, 0.3), 60)
        victim.send_signal(signal.SIGSTOP)
        say(began, f"SIGSTOP {victim.name}, a replica of stage {stage}")
        try:
            await until(lambda: all(len(each.tokens) == TOKENS or each.error for each in all_), 90)
            say(began, "every stream is through while it is still frozen")
        finally:
            victim.send_signal(signal.SIGCONT)
            say(began, "SIGCONT: what it still had to send is of older epochs")
        await asyncio.sleep(0.5)

    judge(await streams(client, "m", STREAMS, freeze), golden, began)
    # What was frozen serves again, and the same tokens.
    await until(lambda: all_ready(client), 60)
    judge(await streams(client, "m", STREAMS), golden, began)
