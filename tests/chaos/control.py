"""F4 and F5: etcd goes away, comes back as it was or empty, forgets leases, goes silent, and compacts its history."""

import asyncio
import json
import shutil
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable

from stagemesh import AsyncClient, records
from stagemesh.errors import StagemeshError
from stagemesh.local.etcd_server import etcd_binary
from stagemesh.v1 import registry_pb2

from .mesh import MODEL, ChaosMesh, until
from .scenario import Run, scenario

LEASE_S = 5.0
DOWN_S, DOWN_SHORT_S = 60.0, 10.0


@scenario("F4", "etcd is stopped, and started again with its data", each_seed=False, in_ci=False)
async def etcd_restarted(run: Run) -> None:
    await _etcd_down(run, lambda: asyncio.sleep(0))


@scenario("F4", "etcd is stopped, and comes back empty", each_seed=False, in_ci=False)
async def etcd_back_empty(run: Run) -> None:
    folder = run.mesh.folder
    assert folder is not None
    await _etcd_down(run, lambda: asyncio.to_thread(shutil.rmtree, folder / "etcd"))


async def _etcd_down(run: Run, meanwhile: Callable[[], Awaitable[None]]) -> None:
    etcd = run.mesh.etcd_server
    assert etcd is not None
    before = {each.replica_id: each.process.pid for each in await run.mesh.hosted(run.client)}
    async with run.streams() as streams:
        await streams.reach(run.share(0.05, 0.5))
        await etcd.stop()
        stopped = time.monotonic()
        run.say("etcd is stopped")
        await meanwhile()
        await asyncio.sleep((DOWN_S if run.full else DOWN_SHORT_S) - (time.monotonic() - stopped))
        kept = {each.replica_id: each.process.pid for each in await run.mesh.hosted(run.client)}
        run.holds("the router keeps its snapshot", kept == before)
        await etcd.start()
        run.say("etcd answers again", f"{len(await written(run.mesh))} records in it")
        try:
            took = await until(lambda: converged(run.mesh, run.client, before), 60, 0.2)
        except TimeoutError:
            took = float("inf")
            run.say("router and etcd differ", await difference(run.mesh, run.client))
        run.within("until etcd, router and processes agree", took, LEASE_S)
        # What would be dropped, or loaded again, is by now.
        await asyncio.sleep(2 * LEASE_S)
        await streams.round()
    after = {each.replica_id: each.process.pid for each in await run.mesh.hosted(run.client)}
    run.holds("the same replicas in the same processes", after == before)
    run.holds("etcd knows the model", any(key.startswith(records.MODELS) for key in await written(run.mesh)))


@scenario("F5", "leases are revoked, the watch goes silent, and history is compacted", each_seed=False)
async def etcd_forgets(run: Run) -> None:
    async with run.streams() as streams:
        await streams.reach(0.2)
        await _revoke(run)
        await _silence(run, compact=False)
        await _silence(run, compact=True)
        await streams.round()
    await run.whole()


async def _revoke(run: Run) -> None:
    victim = await run.replica()
    key = records.node_key(victim.record.node_id)
    found = json.loads(await etcdctl(run.mesh, "get", key, "-w", "json"))["kvs"][0]
    await etcdctl(run.mesh, "lease", "revoke", f"{found['lease']:x}")
    run.say(f"the lease of {victim} is revoked")

    async def registered() -> bool:
        there = await written(run.mesh)
        own = records.replica_key(MODEL, victim.stage, victim.replica_id)
        return key in there and own in there

    run.within("until it is registered again", await until(registered, 30), 2.0)
    run.within("until the router's table equals a fresh read", await until(lambda: agree(run), 60), 5.0)


async def _silence(run: Run, *, compact: bool) -> None:
    """The first router's connections to etcd go silent; meanwhile something changes there."""
    proxy = run.mesh.router_etcd
    assert proxy is not None
    count = proxy.silence()
    run.say("the router's connections to etcd carry nothing any more", f"{count} of them")
    run.holds("there was a connection to silence", count > 0)
    name = f"ghost-{run.rng.randrange(10**6)}"
    ghost = registry_pb2.NodeRecord(node_id=name, address="127.0.0.1:1")
    key = records.node_key(name)
    await etcdctl(run.mesh, "put", key, records.to_json(ghost).decode())
    changed = time.monotonic()
    run.say("a node is announced that it cannot hear of")
    if compact:
        revision = json.loads(await etcdctl(run.mesh, "get", key, "-w", "json"))["header"]["revision"]
        await etcdctl(run.mesh, "compact", str(revision))
        run.say("history is compacted", f"up to revision {revision}")
    await until(lambda: agree(run, name), 60)
    run.within("until the router's table equals a fresh read", time.monotonic() - changed, 5.0)
    proxy.heal()
    await etcdctl(run.mesh, "del", key)
    await until(lambda: agree(run), 60)


# ---- what etcd holds, and what the router makes of it ----


async def agree(run: Run, ghost: str = "") -> bool:
    """Whether the first router's table is what etcd holds now, with the ghost in both."""
    status = await run.client.status(timeout_s=20)
    there = await written(run.mesh)
    table = {records.node_key(node.node_id) for node in status.nodes} | {
        records.replica_key(item.record.model, item.record.stage, item.record.replica_id)
        for item in status.replicas
    }
    fresh = {key for key in there if key.startswith((records.NODES, records.REPLICAS))}
    return table == fresh and (not ghost or records.node_key(ghost) in table)


async def converged(mesh: ChaosMesh, client: AsyncClient, wanted: dict[str, int]) -> bool:
    """Whether etcd has every record that the mesh had, and the router is connected and has the same."""
    try:
        status = await client.status(timeout_s=20)
    except StagemeshError:
        return False
    there = await written(mesh)
    replicas = {key.rpartition("/")[2] for key in there if key.startswith(records.REPLICAS)}
    assigned = {key.rpartition("/")[2] for key in there if key.startswith(records.ASSIGNMENTS)}
    table = {item.record.replica_id for item in status.replicas}
    return status.etcd_connected and replicas == assigned == table == set(wanted)


async def difference(mesh: ChaosMesh, client: AsyncClient) -> str:
    """What etcd and the router hold, in numbers."""
    there = await written(mesh)
    kinds = (records.MODELS, records.NODES, records.ASSIGNMENTS, records.REPLICAS)
    counts = [f"{kind[len(records.ROOT) : -1]} {sum(k.startswith(kind) for k in there)}" for kind in kinds]
    status = await client.status(timeout_s=20)
    return f"etcd: {', '.join(counts)}; router: nodes {len(status.nodes)}, replicas {len(status.replicas)}"


async def written(mesh: ChaosMesh) -> set[str]:
    """Every key of the mesh that etcd holds now; asked by a program of its own."""
    answer = json.loads(await etcdctl(mesh, "get", "--prefix", records.ROOT, "--keys-only", "-w", "json"))
    return {b64decode(item["key"]).decode() for item in answer.get("kvs", ())}


async def etcdctl(mesh: ChaosMesh, *arguments: str) -> str:
    """What etcd's own command line prints."""
    program = etcd_binary().with_name("etcdctl")
    process = await asyncio.create_subprocess_exec(
        str(program),
        f"--endpoints={mesh.etcd_endpoints}",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaint = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"etcdctl {arguments[0]}: {complaint.decode()[-300:]}")
    return out.decode()
