"""Load spreads over the replicas of each stage."""

import asyncio
import sys
from collections import Counter

import psutil
import pytest

from stagemesh import AsyncClient
from stagemesh.local.mesh import LocalMesh

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


async def test_200_concurrent_requests_spread_over_two_replicas_per_stage(client: AsyncClient) -> None:
    answers = await asyncio.gather(
        *(
            client.generate(
                "llama", token_ids=[2 + i, 7], max_tokens=4, temperature=0, ignore_eos=True, cache=False
            )
            for i in range(200)
        )
    )
    assert all(len(answer.token_ids) == 4 for answer in answers)
    for stage in (0, 1):
        counts = Counter(answer.route[stage].replica_id for answer in answers)
        assert len(counts) == 2, counts
        assert all(70 <= count <= 130 for count in counts.values()), counts


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a niceness of its own on Linux only")
async def test_whoever_routes_goes_before_whoever_computes(mesh: LocalMesh) -> None:
    """On a machine that they share: a stage's own threads, and behind them those that compute."""
    first = psutil.Process(mesh.service_process("router").pid).nice()
    for stage in mesh.stage_processes:
        threads = {_nice(stage.pid, thread.id) for thread in psutil.Process(stage.pid).threads()}
        assert min(threads) >= min(first + 5, 19)
        assert max(threads) >= min(first + 15, 19)


def _nice(pid: int, thread: int) -> int:
    """The 19th field of stat(5)."""
    with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii") as file:
        return int(file.read().rpartition(")")[2].split()[16])
