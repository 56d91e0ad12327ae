"""One mesh for all scenarios: whole before each of them, built anew when it does not become whole again."""

import asyncio
import os
import re
import tempfile
import time
from pathlib import Path
from types import TracebackType

import torch

from stagemesh import AsyncClient
from stagemesh.errors import DeadlineExceeded, Unavailable
from tests.checkpoints import make_llama
from tests.stage.small_hub import small_hub

from .decided import decided
from .load import STREAMS, TOKENS, Place, golden
from .mesh import HUB_MODEL, MODEL, ChaosMesh, until
from .scenario import Baseline, Outcome, Scenario, perform

WHOLE_S = 90.0


class Suite:
    """`async with Suite(full=...) as suite`, then `suite.perform` each scenario."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._folder = tempfile.TemporaryDirectory(prefix="stagemesh-chaos-")
        self._llama = make_llama(Path(self._folder.name) / "llama")
        self._hub = small_hub(self._llama, HUB_MODEL)
        self._hub_address = ""
        self._mesh: ChaosMesh | None = None
        self._client: AsyncClient | None = None
        self._calm: Baseline | None = None

    async def __aenter__(self) -> "Suite":
        self._hub_address = self._hub.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()
        self._hub.__exit__(None, None, None)
        self._folder.cleanup()

    async def perform(self, chosen: Scenario, seed: int) -> Outcome:
        """Run a scenario on a mesh that is whole."""
        mesh, client, calm = await self._whole()
        if not await _suits(chosen, mesh, client):
            print("no replica is where this scenario needs one: another mesh", flush=True)
            await self._end()
            mesh, client, calm = await self._whole()
        mesh.events.clear()
        read = {log: log.stat().st_size for log in mesh.folder.glob("*.log")} if mesh.folder else {}
        outcome = await perform(chosen, seed, mesh, client, calm, full=self._full)
        if not outcome.kept:
            outcome.evidence += [f"mesh: {line}" for line in mesh.events] + _complaints(mesh.folder, read)
            print("\n".join(f"          {line}" for line in outcome.evidence), flush=True)
        if outcome.error or outcome.failed or outcome.wrong:
            await self._end()
        return outcome

    async def _whole(self) -> tuple[ChaosMesh, AsyncClient, Baseline]:
        if self._mesh is not None and self._client is not None and self._calm is not None:
            mesh, client = self._mesh, self._client
            try:
                await until(lambda: mesh.whole(client), WHOLE_S, 0.2)
                return mesh, client, self._calm
            except TimeoutError:
                print("the mesh does not become whole again: another one", flush=True)
                await self._end()
        return await self._begin()

    async def _begin(self) -> tuple[ChaosMesh, AsyncClient, Baseline]:
        began = time.monotonic()
        mesh = self._mesh = await self._start()
        await mesh.deploy(self._llama, MODEL, timeout_s=120)
        client = self._client = AsyncClient(mesh.grpc_addresses[0])
        calm = self._calm = Baseline(await self._golden(client), await _prefill_s(client))
        print(
            f"a mesh of {len(mesh.processes)} processes after {time.monotonic() - began:.0f} s, load "
            f"{os.getloadavg()[0]:.1f}; prefill of a whole sequence {calm.prefill_s * 1000:.0f} ms",
            flush=True,
        )
        return mesh, client, calm

    async def _start(self, attempts: int = 3) -> ChaosMesh:
        """A mesh that is up; on a machine that is busy with other things that takes more than one attempt."""
        cache = Path(self._folder.name) / "hub"
        cache.mkdir(exist_ok=True)
        while True:
            mesh = ChaosMesh(self._hub_address, cache)
            attempts -= 1
            try:
                await mesh.start()
                return mesh
            except (DeadlineExceeded, Unavailable) as error:
                if not attempts:
                    raise
                print(f"the mesh did not come up: {error}", flush=True)

    async def _golden(self, client: AsyncClient) -> dict[Place, list[int]]:
        """Each place's tokens on a calm mesh, with places of which no token is decided by the last bits of a sum."""
        wanted: dict[Place, list[int]] = {}
        places = [Place(number) for number in range(STREAMS)]
        while places:
            found = await golden(client, MODEL, places)
            torch.set_num_threads(1)
            clear = await asyncio.to_thread(decided, self._llama, found)
            wanted |= {place: tokens for place, tokens in found.items() if place in clear}
            places = [Place(each.number, each.variant + 1) for each in places if each not in clear]
        # All of them together give the same, in other batches than before.
        again = await golden(client, MODEL, list(wanted))
        assert again == wanted, "a calm mesh gives other tokens the second time"
        return wanted

    async def _end(self) -> None:
        if self._client is not None:
            await self._client.aclose()
        if self._mesh is not None:
            await self._mesh.stop()
        self._mesh = self._client = None


async def _suits(chosen: Scenario, mesh: ChaosMesh, client: AsyncClient) -> bool:
    hosted = await mesh.hosted(client)
    return not chosen.needs or any(chosen.needs(mesh, each) for each in hosted)


async def _prefill_s(client: AsyncClient) -> float:
    """Seconds to a first token after the longest sequence that a replay of the load has; median of five."""
    longest = len(Place(60).prompt) + TOKENS
    took = []
    for turn in range(5):
        ids = [3 + (turn * 131 + step * 7) % 500 for step in range(longest)]
        began = time.monotonic()
        await client.generate(MODEL, token_ids=ids, max_tokens=1, temperature=0, ignore_eos=True, cache=False)
        took.append(time.monotonic() - began)
    return sorted(took)[2]


def _complaints(folder: Path | None, read: dict[Path, int], most: int = 8) -> list[str]:
    """Lines that each process has logged since of something out of the ordinary."""
    found = []
    for log in sorted(folder.glob("*.log")) if folder is not None else ():
        lines = log.read_bytes()[read.get(log, 0) :].decode(errors="replace").splitlines()
        odd = [
            line
            for line in lines
            if " WARNING " in line or " ERROR " in line or (line[:1].isalpha() and "Error" in line)
        ]
        # One of each kind: what a line says without its time and the session's own numbers.
        kinds = {re.sub(r"[0-9a-f]{6,}|\d+", "", line): line for line in odd}
        found += [f"{log.stem}: {line[:240]}" for line in list(kinds.values())[-most:]]
    return found
