"""Stages of one host hand payloads over in shared memory, and leave nothing of it behind, however they end."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local.mesh import LocalMesh
from stagemesh.local.processes import ChildProcess

from .traffic import ready_replicas, until

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]

SHM = Path("/dev/shm")
# A chunk that is worth a place in shared memory has this many; segments that were never used have a header.
LEAST_KIB, HEADER_KIB = 64, 4
# Rows of 512 bytes: far above what is worth a place in shared memory.
PROMPT = [(13 * number) % 500 + 2 for number in range(400)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(llama: Path) -> AsyncIterator[LocalMesh]:
    async with LocalMesh(stages=2, replicas=1, http_port=0, grpc_port=0, threads=1, memory=2 * 2**30) as mesh:
        await mesh.deploy(llama, "pair", cache=False)
        yield mesh


@pytest_asyncio.fixture(loop_scope="session")
async def client(pair: LocalMesh) -> AsyncIterator[AsyncClient]:
    async with pair.client() as client:
        yield client


def names() -> list[str]:
    return [path.name for path in SHM.glob("stagemesh-*")]


def resident(process: ChildProcess) -> list[int]:
    """KiB of each nameless segment that the process has mapped and touched."""
    found = []
    inside = False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = f"{SHM}/stagemesh-" in line
            assert not inside or line.endswith("(deleted)")
        elif inside and line.startswith("Rss:"):
            found.append(int(line.split()[1]))
    return found


async def answer(client: AsyncClient, first: int = 2) -> list[int]:
    """Prompts with different first tokens share no KV, so each crosses the link as a whole."""
    found = await client.generate(
        "pair",
        token_ids=[first, *PROMPT],
        max_tokens=6,
        temperature=0,
        ignore_eos=True,
        timeout_s=40,
    )
    return list(found.token_ids)


async def by_stage(mesh: LocalMesh, client: AsyncClient) -> list[ChildProcess]:
    records = (await ready_replicas(client, "pair")).values()
    hosts = {record.stage: record.pid for record in records}
    return [next(p for p in mesh.stage_processes if p.pid == hosts[stage]) for stage in (0, 1)]


async def test_payloads_go_through_memory_without_a_name(pair: LocalMesh, client: AsyncClient) -> None:
    first = await answer(client)
    assert await answer(client) == first
    for process in await by_stage(pair, client):
        # One of the two links' segments has carried chunks of the prompt; the other carries only tokens back.
        assert max(resident(process)) >= HEADER_KIB + LEAST_KIB
    assert names() == []


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("busy", [False, True])
async def test_nothing_is_left_of_a_stage_that_is_killed(
    pair: LocalMesh, client: AsyncClient, stage: int, busy: bool
) -> None:
    before = await answer(client)
    work = [asyncio.create_task(answer(client, 3 + turn)) for turn in range(8 if busy else 0)]
    if busy:
        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    (await by_stage(pair, client))[stage].send_signal(signal.SIGKILL)
    for result in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(result, list | StagemeshError)
    await until(lambda: names() == [], 10)

    async def answers_again() -> bool:
        try:
            return await answer(client) == before
        except StagemeshError:
            return False

    await until(answers_again, 60)
    assert names() == []


ORPHAN = """
import os, signal
from stagemesh.services.stage.shared_memory import SendingLane
assert SendingLane(2**20).offer is not None
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_stage_sweeps_what_one_left_that_was_killed_before_its_peer_answered(
    pair: LocalMesh, client: AsyncClient
) -> None:
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", ORPHAN], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names()) == 1
    (await by_stage(pair, client))[1].send_signal(signal.SIGKILL)  # and is started again
    await until(lambda: names() == [], 60)
