"""How soon does a model answer that has no replicas, beside a new process that imports and loads one of its partitions?

Four contenders, in turns, on one machine and the same files: (a) `cold`: the new process, from its start to a loaded
partition, which is less than a first token; (b) `warm`: there is no stage process at all; two are forked as the request
comes, nothing is loaded but what was packed when the model was served before lies on disk, and the time ends with the first
token at the client; (c) `first`: the same without that file, so that weights are packed; (d) `kept`: the stage processes run
and have kept the model's weights. (b) to (d) go the whole way: the router holds the request, a registry wakes the model,
both stages load or attach, try themselves out and say so in etcd. Where their time goes is in a table.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoints import checkpoint
from bench.coldstart_phases import MILESTONES, Phases, lengths
from bench.meshes import mesh, prompts
from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Bound, Result, Series
from stagemesh import AsyncClient
from stagemesh.local import LocalMesh, deployment
from stagemesh.local.fork_server import ForkServer
from stagemesh.local.processes import ChildProcess, flag_argv
from stagemesh.v1 import registry_pb2

ROUNDS = 5
STAGES = 2
# A model that nobody asks for goes to sleep after that, so that a round need not wait for long.
IDLE_S = 1
_LOAD_S = 120.0
# Models may only be where their zone is: one on the mesh's own nodes, one on those that are forked for it.
ZONES = {"kept": "", "warm": "forked"}
NODE_BYTES = 3 * 2**30


@dataclass(slots=True)
class Place:
    """The mesh, and what stage processes are forked from."""

    mesh: LocalMesh
    client: AsyncClient
    server: ForkServer
    folder: Path
    name: str
    forked: int = 0

    @property
    def data(self) -> Path:
        """The data folder of what is forked."""
        return self.folder / "data"

    async def fork(self, *, packed: bool = True) -> ChildProcess:
        """A stage process in the zone of what is forked; `packed`: it writes and reads packed partitions."""
        self.forked += 1
        name = f"forked-{self.forked}"
        flags: dict[str, str | int | float] = {
            "etcd": self.mesh.etcd_endpoints,
            "node-id": name,
            "port": 0,
            "threads": 1,
            "memory": NODE_BYTES,
            "zone": ZONES["warm"],
            "keep-mb": 0,
            "drain-s": 0.5,
            "data-dir": str(self.data),
            "packed-mb": -1 if packed else 0,
        }
        return await self.server.fork(name, flag_argv(flags), self.folder / f"{name}.log", os.environ)


async def run(options: Options) -> Result:
    """Measure all three, interleaved."""
    name = "tiny" if options.quick else "small"
    result = Result("coldstart", f"time to the first token of `{name}` in {STAGES} stages from no replicas")
    found: dict[str, list[float]] = {"cold": [], "warm": [], "first": [], "kept": []}
    phases: dict[str, list[dict[str, float]]] = {"warm": [], "first": [], "kept": []}
    with tempfile.TemporaryDirectory(prefix="stagemesh-bench-") as folder:
        async with _place(Path(folder), name) as place:
            for each in ("kept", "warm"):
                await _first(place, each)
            for number, each in interleaved(list(found), options.times(ROUNDS)):
                if each == "cold":
                    found[each].append(await _cold(place))
                else:
                    model = "kept" if each == "kept" else "warm"
                    zone = ZONES[model]
                    async with Phases(place.mesh.etcd_endpoints, model, zone) as watched:
                        await (_kept(place, watched) if each == "kept" else _warm(place, watched, each))
                    phases[each].append(watched.taken)
                    found[each].append(watched.taken["token"])
                say(f"round {number + 1}: {each} {found[each][-1]:.3f} s")
    words = {
        "cold": "new process: import, load",
        "warm": "forked on demand: map, serve",
        "first": "forked on demand: pack, serve",
        "kept": "weights kept: serve",
    }
    for each, values in found.items():
        result.series.append(Series("seconds", words[each], "s", values))
    for each, rounds in phases.items():
        for milestone in MILESTONES:
            spent = [lengths(taken)[milestone] for taken in rounds if milestone in taken]
            if spent:
                result.series.append(Series(f"phases: {words[each]}", milestone, "s", spent))
    result.ratio("first_load_vs_cold", paired_ratio(found["first"], found["cold"]))
    for each, most in (("warm", 0.15), ("kept", 0.05)):
        key = {"warm": "warm_runtime_vs_cold", "kept": "kept_weights_vs_cold"}[each]
        result.ratio(key, paired_ratio(found[each], found["cold"]), Bound(most, at_most=True))
    result.notes += [
        "cold ends with a loaded partition, the others with a token at the client; files lie in the page cache",
        "phases: until the scale record (woken), the forked nodes' records (nodes), the assignments, LOADING and READY of the last"
        " stage, the first token; each from the one before",
    ]
    return result


@contextlib.asynccontextmanager
async def _place(folder: Path, name: str) -> AsyncIterator[Place]:
    async with mesh(STAGES) as running, running.client() as client:
        server = await ForkServer.start(folder / "server.log", os.environ)
        try:
            yield Place(running, client, server, folder, name)
        finally:
            await server.stop()


async def _first(place: Place, model: str) -> None:
    """Deploy a model, and have it answer once: what a machine learns of its layers, it knows then."""
    request = registry_pb2.DeployRequest(
        source=str(checkpoint(place.name)),
        name=model,
        stages=STAGES,
        replicas=1,
        cache=False,
        zones=[ZONES[model]] if ZONES[model] else [],
        scaling=registry_pb2.Scaling(min_replicas=0, max_replicas=1, idle_s=IDLE_S),
    )
    nodes = [await place.fork() for _ in range(STAGES)] if model == "warm" else []
    await _until_joined(place, len(nodes))
    await deployment.deploy(place.mesh.registry_address, request)
    await _until_listed(place, model)
    await _token(place, model)
    if nodes:
        await _until_packed(place)
    await _asleep(place, model)
    await _end(nodes)


async def _until_packed(place: Place) -> None:
    """What the stages packed is written beside serving."""
    try:
        async with asyncio.timeout(_LOAD_S):
            while len(list(place.data.glob("packed/*.packed"))) < STAGES:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        say("nothing was packed here: `warm` is as `first`")


async def _until_joined(place: Place, count: int) -> None:
    async with asyncio.timeout(_LOAD_S):
        while True:
            nodes = (await place.client.status()).nodes
            if sum(node.zone == ZONES["warm"] for node in nodes) >= count:
                return
            await asyncio.sleep(0.05)


async def _until_listed(place: Place, model: str) -> None:
    async with asyncio.timeout(_LOAD_S):
        while True:
            if model in {each.spec.name for each in (await place.client.status()).models}:
                return
            await asyncio.sleep(0.05)


async def _cold(place: Place) -> float:
    """Seconds of a new process that loads the first partition."""
    layers = (await _spec(place, "kept")).partitions[0]
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.coldstart_child",
        str(checkpoint(place.name)),
        str(layers.first_layer),
        str(layers.end_layer),
        str(place.data),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _LOAD_S)
    taken = time.perf_counter() - started
    if line.strip() != b"loaded" or await process.wait():
        raise RuntimeError("the new process did not load the partition")
    return taken


async def _warm(place: Place, phases: Phases, contender: str) -> None:
    """From a request to its first token, for a model whose stage processes do not exist yet."""
    await _asleep(place, "warm")
    phases.begin()
    token = asyncio.create_task(_token(place, "warm"))
    nodes = await asyncio.gather(*(place.fork(packed=contender == "warm") for _ in range(STAGES)))
    phases.end(await token)
    # Nodes that end under a replica would be a loss, after which the registry waits before it places the next one.
    await _asleep(place, "warm")
    await _end(nodes)


async def _kept(place: Place, phases: Phases) -> None:
    """The same, for a model whose weights the nodes have kept."""
    await _asleep(place, "kept")
    kept = sum(len(node.keeps) for node in (await place.client.status()).nodes)
    if kept < STAGES:
        raise RuntimeError(f"{kept} of {STAGES} partitions were kept")
    phases.begin()
    phases.end(await _token(place, "kept"))


async def _token(place: Place, model: str) -> float:
    """When the first token came, of a request that has just been sent."""
    (prompt,) = prompts(place.name, 1, 4, seed=place.forked)
    at = 0.0
    async with place.client.stream(
        model, token_ids=prompt, max_tokens=2, temperature=0.0, ignore_eos=True, cache=False
    ) as chunks:
        async for chunk in chunks:
            if chunk.token_ids and not at:
                at = time.perf_counter()
    return at


async def _asleep(place: Place, model: str) -> None:
    """Wait until the model sleeps and every replica of it is gone."""
    async with asyncio.timeout(_LOAD_S):
        while True:
            status = await place.client.status()
            sleeps = any(each.asleep and each.spec.name == model for each in status.models)
            if sleeps and not any(each.record.model == model for each in status.replicas):
                return
            await asyncio.sleep(0.05)


async def _spec(place: Place, model: str) -> registry_pb2.ModelSpec:
    models = (await place.client.status()).models
    return next(each.spec for each in models if each.spec.name == model)


async def _end(nodes: list[ChildProcess]) -> None:
    await asyncio.gather(*(node.stop(10.0) for node in nodes))
