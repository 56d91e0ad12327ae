"""What survives: any member of etcd, the leading registry, and everything at once."""

import asyncio
import signal
from pathlib import Path

import pytest

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1.registry_pb2 import ReplicaRecord

MODEL = "examples/demo_model/model"
MEMORY = 2**30
PLACES = {"http_port": 0, "grpc_port": 0, "threads": 1, "memory": MEMORY}


async def leading_member(mesh: LocalMesh) -> int:
    """Which member of etcd leads the others."""
    from aetcd import rpc

    for number, member in enumerate(mesh.etcd_servers):
        etcd = Etcd(member.endpoint, timeout_s=2.0)
        await etcd.start()
        try:
            channel = etcd._channel.current
            status = await rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), timeout=2.0)
        finally:
            await etcd.close()
        if status.leader == status.header.member_id:
            return number
    raise AssertionError("no member leads")


async def replica_ids(etcd: Etcd) -> dict[str, int]:
    """Every replica and its process."""
    items, _ = await etcd.get_prefix(records.REPLICAS)
    found = [records.from_json(item.value, ReplicaRecord) for item in items]
    return {each.replica_id: each.pid for each in found}


@pytest.mark.long
@pytest.mark.mesh
async def test_any_member_of_etcd_and_the_leading_registry_may_die() -> None:
    """Each member in turn, the leading one first: no request fails and nothing is loaded again."""
    async with LocalMesh(stages=2, replicas=1, etcd_members=3, registries=2, **PLACES) as mesh:
        await mesh.deploy(MODEL, "demo", cache=False)
        failed: list[BaseException] = []
        answered = 0
        going = True

        async def ask() -> None:
            nonlocal answered
            async with mesh.client(timeout_s=20.0) as client:
                while going:
                    try:
                        await client.generate("demo", "def ", max_tokens=4, temperature=0.0)
                        answered += 1
                    except Exception as error:
                        failed.append(error)
                    await asyncio.sleep(0.02)

        asking = asyncio.create_task(ask())
        etcd = Etcd(mesh.etcd_endpoints)
        await etcd.start()
        before = await replica_ids(etcd)
        first = await leading_member(mesh)
        for turn, number in enumerate([first, (first + 1) % 3, (first + 2) % 3]):
            member = mesh.etcd_servers[number]
            assert member.process is not None
            gone = member.process.pid
            member.process.send_signal(signal.SIGKILL)
            # Written while it is away.
            async with asyncio.timeout(15):
                await etcd.put(records.ROOT + "test", str(turn).encode())
                while member.process is None or member.process.pid == gone:
                    await asyncio.sleep(0.05)
                while (found := await etcd.get(records.ROOT + "test")) is None or found.value != str(
                    turn
                ).encode():
                    await asyncio.sleep(0.05)
                # All three answer before the next one goes.
                for each in mesh.etcd_servers:
                    alone = Etcd(each.endpoint, timeout_s=10.0)
                    await alone.start()
                    await alone.close()
        leader = await etcd.get(records.LEADER)
        assert leader is not None
        for kind in ("registry", "registry-1"):
            process = mesh.service_process(kind)
            if "registry.leader gained" in process.log_path.read_text():
                process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(20):  # another one leads
            while (now := await etcd.get(records.LEADER)) is None or now.value == leader.value:
                await asyncio.sleep(0.05)
        going = False
        await asyncio.gather(asking)
        assert not failed, failed[:3]
        assert answered > 20
        assert await replica_ids(etcd) == before, "nothing was loaded again"
        await etcd.close()


@pytest.mark.long
@pytest.mark.mesh
async def test_the_same_models_come_back_after_everything_was_killed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with LocalMesh(stages=2, replicas=1, data=data, **PLACES) as mesh:
        await mesh.deploy(MODEL, "demo", cache=False)
        await mesh.deploy(MODEL, "other", stages=1, replicas=1, cache=False, wait=False)
        async with mesh.client() as client:
            said = await client.generate("demo", "def ", max_tokens=8, temperature=0.0)
        places = [*mesh._services.values(), *mesh._nodes, *(each._place for each in mesh.etcd_servers)]
        for place in places:
            assert place is not None
            await place.release()
        for process in mesh.processes:
            process.send_signal(signal.SIGKILL)
    async with LocalMesh(stages=1, replicas=1, data=data, **PLACES) as mesh:
        assert mesh.nodes == 2
        for name in ("demo", "other"):
            await mesh.wait_ready(name, timeout_s=60)
        async with mesh.client() as client:
            again = await client.generate("demo", "def ", max_tokens=8, temperature=0.0)
        assert again.token_ids == said.token_ids
