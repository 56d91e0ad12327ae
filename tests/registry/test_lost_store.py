"""A store that comes back empty is given the desired state again by the registry that remembers it."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from stagemesh import records
from stagemesh.etcd import Etcd
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.v1.registry_pb2 import DeployRequest, UndeployRequest

DEMO = str(Path(__file__).parents[2] / "examples" / "demo_model" / "model")


async def desired(etcd: Etcd) -> dict[str, bytes]:
    items, _ = await etcd.get_prefix(records.ROOT)
    return {i.key: i.value for i in items if i.key.startswith((records.MODELS, records.ASSIGNMENTS))}


async def holds(etcd: Etcd, check: Callable[[dict[str, bytes]], bool]) -> None:
    async with asyncio.timeout(60):
        while not check(await desired(etcd)):
            await asyncio.sleep(0.1)


async def lose(etcd_server: EtcdServer, folder: Path) -> None:
    await etcd_server.stop()
    await asyncio.to_thread(shutil.rmtree, folder / "etcd")
    await etcd_server.start()


async def test_a_store_that_comes_back_empty_gets_models_and_assignments_again(
    start_registry, start_node, until, etcd, etcd_server, tmp_path
) -> None:
    nodes = [await start_node(f"n{number}") for number in range(4)]
    registry = await start_registry()
    for name in ("demo", "gone"):
        await registry.stub.Deploy(DeployRequest(source=DEMO, name=name, stages=2, replicas=2))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 8)
    await registry.stub.Undeploy(UndeployRequest(name="gone"))
    # The nodes that this left idle are given a replica each: nothing moves after that.
    await until(lambda: all(len(node.assigned) == 1 for node in nodes))
    await holds(etcd, lambda there: len(there) == 5)
    before = await desired(etcd)
    given = [dict(node.assigned) for node in nodes]

    await lose(etcd_server, tmp_path)
    await holds(etcd, lambda there: there == before)
    # What was undeployed stays so, nothing moves, and a new wish is heard.
    await asyncio.sleep(3.0)
    assert await desired(etcd) == before
    assert [dict(node.assigned) for node in nodes] == given
    await registry.stub.Undeploy(UndeployRequest(name="demo"))
    await until(lambda: not any(node.assigned for node in nodes))
    await holds(etcd, lambda there: not there)


async def test_a_store_that_was_only_away_is_taken_as_it_is(
    start_registry, start_node, until, etcd, etcd_server
) -> None:
    """What was removed while the registry could not see it is not put back."""
    nodes = [await start_node(f"n{number}") for number in range(2)]
    registry = await start_registry()
    await registry.stub.Deploy(DeployRequest(source=DEMO, name="demo", stages=2, replicas=1))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 2)
    await etcd_server.stop()
    await etcd_server.start()
    assert await etcd.delete(records.model_key("demo"))
    await holds(etcd, lambda there: not there)
    await asyncio.sleep(2.0)
    assert await desired(etcd) == {}
