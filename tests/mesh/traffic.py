"""Light traffic on a mesh while something is done to it, and what became of each request."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1 import inference_pb2, registry_pb2

PROMPTS = [[5, 6, 7], [300, 2, 40, 41], [77] * 12, [8, 99, 123, 456, 400]]


@dataclass(frozen=True)
class Outcome:
    """One request; times are monotonic seconds, `error` is None when it was answered."""

    prompt: int
    began: float
    ended: float
    tokens: tuple[int, ...] = ()
    cache: str = ""
    error: StagemeshError | None = None


@dataclass
class Traffic:
    """Requests so far, oldest first."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def since(self, moment: float) -> list[Outcome]:
        """Those that began after `moment`."""
        return [outcome for outcome in self.outcomes if outcome.began > moment]

    @property
    def longest_s(self) -> float:
        return max(outcome.ended - outcome.began for outcome in self.outcomes)

    async def wait_for(self, more: int, within_s: float = 30.0) -> None:
        """Return once that many further requests have been answered."""
        goal = more + sum(outcome.error is None for outcome in self.outcomes)
        await until(lambda: sum(outcome.error is None for outcome in self.outcomes) >= goal, within_s)


async def ask(client: AsyncClient, model: str, prompt: int) -> Outcome:
    """One short greedy generation."""
    began = time.monotonic()
    try:
        answer = await client.generate(
            model, token_ids=PROMPTS[prompt], max_tokens=8, temperature=0, ignore_eos=True, timeout_s=40
        )
    except StagemeshError as error:
        return Outcome(prompt, began, time.monotonic(), error=error)
    return Outcome(prompt, began, time.monotonic(), answer.token_ids, answer.cache)


@asynccontextmanager
async def traffic(client: AsyncClient, model: str, workers: int = 3) -> AsyncIterator[Traffic]:
    """Requests one after another from each worker, until left; every request is waited for."""
    seen = Traffic()
    over = asyncio.Event()

    async def work(worker: int) -> None:
        turn = worker
        while not over.is_set():
            seen.outcomes.append(await ask(client, model, turn % len(PROMPTS)))
            turn += 1
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(work(worker)) for worker in range(workers)]
    try:
        yield seen
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def until(check: Callable[[], object], within_s: float) -> float:
    """Wait until `check()`, which may be a coroutine function, is true; returns the seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            result = check()
            if isinstance(result, Awaitable):
                result = await result
            if result:
                return time.monotonic() - began
            await asyncio.sleep(0.05)


async def ready_replicas(client: AsyncClient, model: str) -> dict[str, registry_pb2.ReplicaRecord]:
    """The model's ready replicas in the router's view, by id."""
    status = await client.status(timeout_s=10)
    return {
        item.record.replica_id: item.record
        for item in status.replicas
        if item.record.model == model and item.record.state == registry_pb2.REPLICA_STATE_READY
    }


async def loads(client: AsyncClient) -> inference_pb2.MeshStatus:
    """Every replica with its load, all of which answered."""
    status = await client.status(timeout_s=10)
    assert all(item.HasField("load") for item in status.replicas)
    return status


def pids(mesh: LocalMesh) -> dict[str, int]:
    """Process ids of the mesh by name."""
    return {process.name: process.pid for process in mesh.processes}
