"""F7, F8 and F9: a router dies, the cache dies or hangs, and a model cannot be loaded."""

import shutil
import signal
import time
from pathlib import Path

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError
from stagemesh.local import deployment
from stagemesh.v1 import registry_pb2
from tests.checkpoints import make_llama

from .mesh import DISK, FULL_NODE, HUB_MODEL, MODEL, until
from .scenario import Run, quantile, scenario

ADDED_S = 0.020
PROBES = 60


@scenario("F7", "SIGKILL of the router that the clients use, of two")
async def kill_a_router(run: Run) -> None:
    async with run.mesh.client() as client:
        async with run.streams(rounds=1, clients=[client]) as streams:
            await streams.reach(run.share(0.05, 0.8))
            used = run.mesh.grpc_addresses.index(client.address)
            victim = run.mesh.router_processes[used]
            run.signal(victim, signal.SIGKILL)
            killed = time.monotonic()
        run.say("the client moved", f"to router {client.address}, {client.stats}")
        run.within("every stream had ended", time.monotonic() - killed, 60.0)
    # Every stream of the router at once is computed again from its prompt on, at the other one.
    run.within("p99 stall", quantile(run.outcome.stalls_s, 0.99), 5.0)

    async def back() -> bool:
        return all([await _answers(address) for address in run.mesh.grpc_addresses])

    run.say("both routers answer", f"after {await until(back, 90, 0.2):.1f} s")
    await run.whole()


async def _answers(address: str) -> bool:
    async with AsyncClient(address, attempts=1) as client:
        try:
            return len((await client.status(timeout_s=5)).nodes) > 0
        except StagemeshError:
            return False


@scenario("F8", "the cache hangs, later it is killed", in_ci=False)
async def lose_the_cache(run: Run) -> None:
    cache = run.mesh.service_process("cache")
    await _added(run, "alive")
    async with run.streams(rounds=1, cache=True) as streams:
        await streams.reach(run.share(0.05, 0.5))
        run.signal(cache, signal.SIGSTOP)
    run.within("added by a cache that hangs, p50", await _added(run, "hanging"), ADDED_S)
    run.signal(cache, signal.SIGKILL)
    run.within("added by a cache that is gone, p50", await _added(run, "gone"), ADDED_S)
    async with run.streams(rounds=1, cache=True):
        pass

    async def hits() -> bool:
        answers = [await _probe(run, 7, cache=True) for _ in range(2)]
        return answers[1][1] == "hit"

    run.say("it is back and answers", f"after {await until(hits, 60, 0.2):.1f} s")


async def _added(run: Run, state: str) -> float:
    """Seconds that the cache adds to a request that it cannot answer; with and without it in turn."""
    with_, without = [], []
    seen: set[str] = set()
    for _ in range(PROBES if run.full else PROBES // 2):
        took, cache = await _probe(run, run.rng.randrange(10**6), cache=True)
        with_.append(took)
        seen.add(cache)
        without.append((await _probe(run, run.rng.randrange(10**6), cache=False))[0])
    added = quantile(with_, 0.5) - quantile(without, 0.5)
    run.say(
        f"cache {state}: {', '.join(sorted(seen))}",
        f"p50 {quantile(with_, 0.5) * 1e3:.0f} ms with it, {quantile(without, 0.5) * 1e3:.0f} ms without; "
        f"p99 {quantile(with_, 0.99) * 1e3:.0f} and {quantile(without, 0.99) * 1e3:.0f} ms",
    )
    return max(added, 0.0)


async def _probe(run: Run, number: int, *, cache: bool) -> tuple[float, str]:
    """Seconds of a short request, and what the cache had to do with it."""
    ids = [2 + (number // 500**place) % 500 for place in range(3)]
    began = time.monotonic()
    answer = await run.client.generate(
        MODEL, token_ids=ids, max_tokens=4, temperature=0, ignore_eos=True, cache=cache
    )
    return time.monotonic() - began, answer.cache


@scenario("F9", "a truncated shard, before and after it was deployed", each_seed=False, in_ci=False)
async def truncated_shard(run: Run) -> None:
    assert run.mesh.folder is not None
    whole = make_llama(run.mesh.folder / "sharded", max_shard_size="2MB")
    shards = sorted(whole.glob("*.safetensors"))
    run.holds("the checkpoint has several shards", len(shards) > 1)
    async with run.streams() as streams:
        await streams.reach(0.1)
        cut = Path(shutil.copytree(whole, run.mesh.folder / "cut"))
        truncate(cut / shards[-1].name)
        try:
            await run.mesh.deploy(cut, "cut", replicas=1, timeout_s=30)
            run.holds("a truncated shard is refused", False)
        except StagemeshError as error:
            run.say("deploying it is refused", f"{type(error).__name__}: {error.message}")
            run.holds("the error names the file", shards[-1].name in error.message)
        await run.mesh.deploy(whole, "sharded", replicas=1, timeout_s=60)
        run.say("a sharded model is deployed and ready")
        truncate(whole / shards[-1].name)
        await deployment.scale(run.mesh.registry_address, "sharded", 2, None)
        run.say("its last shard is replaced by a truncated one, and it is scaled up")
        seen: list[registry_pb2.ReplicaRecord] = []

        async def failed() -> bool:
            status = await run.client.status()
            seen[:] = [item.record for item in status.replicas if item.record.model == "sharded"]
            found = await deployment.deployments(run.mesh.registry_address)
            seen.extend(r for each in found if each.model.name == "sharded" for r in each.replicas)
            return any(record.state == registry_pb2.REPLICA_STATE_FAILED for record in seen)

        await until(failed, 60, 0.2)
        bad = next(record for record in seen if record.state == registry_pb2.REPLICA_STATE_FAILED)
        run.say(f"a replica of stage {bad.stage} failed", bad.detail)
        run.holds("its error names the file", shards[-1].name in bad.detail)
        answer = await run.client.generate(
            "sharded", token_ids=[5, 6], max_tokens=4, temperature=0, ignore_eos=True
        )
        run.holds("the replicas loaded before go on", len(answer.token_ids) == 4)
        ready = {record.replica_id for record in seen if record.state == registry_pb2.REPLICA_STATE_READY} & {
            record.replica_id for record in seen if record.state == registry_pb2.REPLICA_STATE_FAILED
        }
        run.holds("what failed was never ready", not ready)
        await deployment.undeploy(run.mesh.registry_address, "sharded")
        await streams.round()
    await run.whole()


@scenario("F9", "a disk that is full where weights are fetched to", each_seed=False, in_ci=False)
async def full_disk(run: Run) -> None:
    if not run.mesh.full_disk:
        run.untested("a full disk: this machine lets nobody mount a file system")
        return
    node = run.mesh.stage_processes[FULL_NODE].name
    states: set[str] = set()
    detail = ""

    async def look() -> int:
        """Ready replicas elsewhere; what became of the one here is noted."""
        nonlocal detail
        found = await deployment.deployments(run.mesh.registry_address)
        records = [r for each in found if each.model.name == "fetched" for r in each.replicas]
        for record in records:
            if record.node_id == node:
                states.add(registry_pb2.ReplicaState.Name(record.state).removeprefix("REPLICA_STATE_"))
                detail = record.detail or detail
        ready = [r for r in records if r.state == registry_pb2.REPLICA_STATE_READY]
        return len({r.node_id for r in ready} - {node})

    async def through() -> bool:
        return await look() == run.mesh.nodes - 1 and bool(detail)

    async with run.streams() as streams:
        await streams.reach(0.1)
        await run.mesh.deploy(HUB_MODEL, "fetched", stages=1, replicas=run.mesh.nodes, wait=False)
        run.say("a model is fetched from a hub, to every node", f"the disk of {node} holds {DISK} bytes")
        run.say("every other node has it", f"after {await until(through, 90, 0.1):.1f} s")
        run.say(f"{node}: {', '.join(sorted(states))}", detail)
        run.holds("the error names the cause", "No space left" in detail)
        run.holds("what failed was never ready", "READY" not in states)
        answer = await run.client.generate(
            "fetched", token_ids=[5], max_tokens=4, temperature=0, ignore_eos=True
        )
        run.holds("the others answer", len(answer.token_ids) == 4)
        await deployment.undeploy(run.mesh.registry_address, "fetched")
        await streams.round()
    await run.whole()


def truncate(file: Path) -> None:
    """Replace a file by its first half, as an interrupted copy leaves it; whoever has it open keeps the whole."""
    half = file.read_bytes()[: file.stat().st_size // 2]
    shorter = file.with_suffix(".part")
    shorter.write_bytes(half)
    shorter.rename(file)
