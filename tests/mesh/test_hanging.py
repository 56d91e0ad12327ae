"""A stage process in which something hangs, although its sockets live: no request fails, and it is started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from stagemesh.services.stage.watcher import EXIT_HANGS

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh
from stagemesh.local.processes import ChildProcess
from tests.chaos.streams import TOKENS, Stream, streams
from tests.checkpoints import make_llama

from .traffic import ready_replicas, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module")]

STREAMS = 8
STAGES, REPLICAS = 2, 2
FAULTS = Path(__file__).parent.parent / "faults"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    llama = make_llama(tmp_path_factory.mktemp("llama"))
    paths = [str(FAULTS), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    async with LocalMesh(
        stages=STAGES, replicas=REPLICAS, http_port=0, grpc_port=0, threads=1, memory=2**30, env=env
    ) as mesh:
        await mesh.deploy(llama, "m", cache=False, timeout_s=120)
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(mesh: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with mesh.client() as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def golden(client: AsyncClient) -> list[list[int]]:
    """What every stream gives when nothing hangs."""
    calm = await streams(client, "m", STREAMS)
    assert [each.error for each in calm] == [None] * STREAMS
    return [each.tokens for each in calm]


async def host_of(mesh: LocalMesh, client: AsyncClient, stage: int) -> ChildProcess:
    hosts = {r.pid for r in (await ready_replicas(client, "m")).values() if r.stage == stage}
    return next(process for process in mesh.stage_processes if process.pid in hosts)


@pytest.mark.parametrize(
    ("number", "stage", "what"),
    [
        (signal.SIGUSR2, 1, "a pass of a later stage"),
        (signal.SIGUSR1, 1, "the loop of a later stage"),
        (signal.SIGUSR1, 0, "the loop of a head"),
    ],
    ids=["pass", "loop", "head"],
)
async def test_what_hangs_costs_no_request(
    mesh: LocalMesh,
    client: AsyncClient,
    golden: list[list[int]],
    number: signal.Signals,
    stage: int,
    what: str,
) -> None:
    async def all_ready() -> bool:
        return len(await ready_replicas(client, "m")) == STAGES * REPLICAS

    await until(all_ready, 60)
    victim = await host_of(mesh, client, stage)

    async def hang(all_: list[Stream]) -> None:
        await until(lambda: sum(len(each.tokens) for each in all_) >= 0.3 * STREAMS * TOKENS, 60)
        victim.send_signal(number)

    hung = await streams(client, "m", STREAMS, hang)
    stalls = sorted(each.stall_s for each in hung)
    print(
        f"\n{what} hangs: longest pause of a stream: median {stalls[STREAMS // 2]:.2f} s, all {stalls[-1]:.2f} s"
    )
    assert [each.error for each in hung] == [None] * STREAMS
    assert [each.tokens for each in hung] == golden
    # It ends by itself, and what takes its place serves.
    assert await asyncio.wait_for(victim.wait(), 60) == EXIT_HANGS
