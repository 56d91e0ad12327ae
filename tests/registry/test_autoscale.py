"""What the autoscaler decides becomes records and events in a real etcd, and what follows from them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from in_process import MIB, InProcess, put_world, spec_of
from stagemesh.services.registry.autoscale import Autoscale, Settings
from stagemesh.services.registry.events import Events
from stagemesh.services.registry.leadership import Fenced
from stagemesh.services.registry.node_pool import EtcdPool, NodePool
from stagemesh.services.registry.scales import Scales
from stagemesh.services.registry.scaling.autoscaler import Patience
from stagemesh.services.registry.scaling.capacity import Bounds
from stagemesh.services.registry.scaling.limits import Defaults

from stagemesh import records
from stagemesh.errors import NotFound
from stagemesh.etcd import Etcd
from stagemesh.local.etcd_server import EtcdServer
from stagemesh.v1.registry_pb2 import (
    CapacityRecord,
    LoadReport,
    ModelReport,
    ModelSpec,
    ReplicaReport,
    ScaleRecord,
    Scaling,
)

Until = Callable[[Callable[[], object]], Awaitable[None]]
StartNode = Callable[..., Awaitable[Any]]


class Mesh:
    """One registry in this process, nodes that are records, and load as the test says."""

    def __init__(self, registry: InProcess, events: Events, settings: Settings) -> None:
        pool = EtcdPool(registry.etcd, registry.leadership) if settings.node_pool else None
        nodes = NodePool(pool, Bounds(1, 4, empty_after_s=30), events)
        self.registry = registry
        self.events = events
        self.autoscale = Autoscale(
            registry.etcd, registry.mirror, registry.leadership, registry.controller, events, nodes, settings
        )
        self.scales = Scales(registry.etcd, registry.mirror)
        self.now = 0.0
        self.nodes: list[Any] = []

    def assigned(self, stage: int | None = None) -> int:
        return sum(len([each for each in node.stages() if stage in (None, each)]) for node in self.nodes)

    async def run(
        self,
        seconds: int,
        *,
        queue_ms: tuple[float, ...] = (0, 0),
        busy: tuple[float, ...] = (0, 0),
        arrivals: int = 0,
    ) -> None:
        """So many seconds of the autoscaler's clock, with this load on each replica of each stage."""
        for _ in range(seconds):
            self.now += 1
            for node in self.nodes:
                told = [
                    ReplicaReport(
                        replica_id=each.replica_id, model=each.model, stage=each.stage, passes_per_s=10,
                        queue_ms=queue_ms[each.stage], busy=busy[each.stage],
                    )
                    for each in node.assigned.values()
                ]  # fmt: skip
                report = LoadReport(reporter=node.node_id, covers_ms=1000, replicas=told)
                self.autoscale.take(report, self.now)
            models = [ModelReport(model="m", arrivals=arrivals)]
            self.autoscale.take(LoadReport(reporter="router", covers_ms=1000, models=models), self.now)
            await self.autoscale.step(self.now)
            await asyncio.sleep(0.01)

    def wanted(self) -> list[int]:
        record = self.registry.mirror.world().scales.get("m")
        return [] if record is None else list(record.replicas)


SETTINGS = Settings(
    Defaults(queue_ms=20, idle_s=100),
    Patience(up_after_s=3, up_cooldown_s=5, down_after_s=20, down_cooldown_s=5),
    consolidate_after_s=10,
)


def model(least: int = 0, most: int = 3, replicas: int = 1) -> ModelSpec:
    spec = spec_of("m", 2, replicas)
    spec.scaling.CopyFrom(Scaling(min_replicas=least, max_replicas=most))
    return spec


@pytest.fixture
async def mesh(
    etcd_server: EtcdServer, etcd: Etcd, start_node: StartNode, until: Until
) -> AsyncIterator[Mesh]:
    registry = await InProcess(etcd_server.endpoint, "r", seed=1).start()
    async with Events(registry.etcd, "r") as events:
        mesh = Mesh(registry, events, SETTINGS)
        mesh.nodes = [await start_node(f"n{nth}") for nth in range(3)]
        await until(
            lambda: registry.leadership.leads and registry.mirror.has_seen(b"r", registry.leadership.term)
        )
        yield mesh
    await registry.die()


async def events_of(etcd: Etcd) -> list[dict[str, object]]:
    found, _ = await etcd.get_prefix(records.EVENTS)
    return [json.loads(each.value) for each in found]


async def test_load_grows_one_stage_idling_shrinks_it_then_all_sleep_and_wake_together(
    mesh: Mesh, etcd: Etcd, until: Until
) -> None:
    await put_world(etcd, model())
    await until(lambda: mesh.assigned() == 2)

    await mesh.run(7, queue_ms=(1, 80), busy=(0.2, 0.9), arrivals=5)
    assert mesh.wanted() == [1, 2]
    await until(lambda: (mesh.assigned(0), mesh.assigned(1)) == (1, 2))
    await mesh.run(60, arrivals=1)
    assert mesh.wanted() == [1, 1]
    await until(lambda: mesh.assigned() == 2)
    await mesh.run(101)
    assert mesh.wanted() == [0, 0]
    await until(lambda: mesh.assigned() == 0)
    # Nothing comes back by itself.
    await mesh.run(20)
    assert mesh.assigned() == 0

    assert await mesh.scales.wake("m", "a request came")
    assert not await mesh.scales.wake("m", "another one came")
    await until(lambda: mesh.assigned() == 2)
    kinds = [str(each["kind"]) for each in await events_of(etcd)]
    assert [kind for kind in kinds if kind.startswith("scale")] == ["scale.up", "scale.down", "scale.sleep"]
    (up, *_) = await events_of(etcd)
    assert "stage 1 from 1 to 2 replicas: steps wait" in str(up["reason"])
    assert up["numbers"]["to"] == 2  # type: ignore[index]


async def test_a_wake_between_decision_and_writing_is_not_overwritten(
    mesh: Mesh, etcd: Etcd, until: Until
) -> None:
    await put_world(etcd, model())
    await until(lambda: mesh.assigned() == 2)
    mesh.registry.sees.clear()  # this registry sees nothing of what others write from here on
    other = ScaleRecord(model="m", replicas=[2, 2], reason="somebody else's")
    await etcd.put(records.scale_key("m"), records.to_json(other))
    await mesh.run(130)
    found = await etcd.get(records.scale_key("m"))
    assert found is not None
    assert records.from_json(found.value, ScaleRecord) == other
    mesh.registry.sees.set()


async def test_a_former_leader_writes_nothing(mesh: Mesh, etcd: Etcd, until: Until) -> None:
    await put_world(etcd, model())
    await until(lambda: mesh.assigned() == 2)
    for task in mesh.registry.tasks[1:]:
        task.cancel()
    await mesh.run(3, queue_ms=(1, 80), busy=(0.2, 0.9))
    mesh.registry.sees.clear()  # it does not know yet that another one leads
    await etcd.put(records.LEADER, b"another")
    with pytest.raises(Fenced):
        await mesh.run(10, queue_ms=(1, 80), busy=(0.2, 0.9))
    assert await etcd.get(records.scale_key("m")) is None


async def test_what_is_little_used_is_packed_and_never_less_serves(
    mesh: Mesh, etcd: Etcd, until: Until
) -> None:
    await put_world(etcd, model(least=1))
    await until(lambda: mesh.assigned() == 2)
    assert sorted(len(node.assigned) for node in mesh.nodes) == [0, 1, 1]
    lowest = 2
    stages: set[tuple[bool, ...]] = set()

    async def watch() -> None:
        nonlocal lowest
        while True:
            lowest = min(lowest, mesh.assigned())
            stages.add((mesh.assigned(0) > 0, mesh.assigned(1) > 0))
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    await mesh.run(14, arrivals=1)
    await until(lambda: sorted(len(node.assigned) for node in mesh.nodes) == [0, 0, 2])
    watching.cancel()
    assert lowest == 2
    assert stages == {(True, True)}
    assert [each["kind"] for each in await events_of(etcd)] == ["consolidate.move"]
    # It stays as it is.
    before = [set(node.assigned) for node in mesh.nodes]
    await mesh.run(60, arrivals=1)
    assert [set(node.assigned) for node in mesh.nodes] == before


async def test_a_fixed_number_again_takes_the_record_away(mesh: Mesh, etcd: Etcd, until: Until) -> None:
    await put_world(etcd, model())
    await until(lambda: mesh.assigned() == 2)
    await mesh.run(102)
    assert mesh.wanted() == [0, 0]
    await put_world(etcd, spec_of("m", 2, 1))
    await until(lambda: mesh.assigned() == 2)
    await mesh.run(2)
    assert await etcd.get(records.scale_key("m")) is None


async def test_nodes_are_asked_for_while_replicas_have_no_room_and_given_back_when_the_last_ones_are_empty(
    mesh: Mesh, etcd: Etcd, until: Until, start_node: StartNode
) -> None:
    nodes = mesh.nodes
    mesh = Mesh(mesh.registry, mesh.events, replace(SETTINGS, node_pool=True))
    mesh.nodes = nodes

    async def asked() -> int:
        found = await etcd.get(records.CAPACITY)
        return records.from_json(found.value, CapacityRecord).nodes if found is not None else 0

    # A node has room for one of four replicas, and there are three.
    spec = spec_of("m", 2, 2, partition_bytes=40 * MIB)
    spec.scaling.CopyFrom(Scaling(min_replicas=2))
    await put_world(etcd, spec)
    await until(lambda: mesh.assigned() == 3 and mesh.registry.controller.pending)
    await mesh.run(6, arrivals=1)
    assert await asked() == 4
    nodes.append(await start_node("n10"))
    await until(lambda: mesh.assigned() == 4)

    spec.CopyFrom(model(least=1))
    spec.revision = "r2"
    await put_world(etcd, spec)
    await until(lambda: mesh.assigned() == 2)
    async with asyncio.timeout(20):
        while await asked() != 1:
            await mesh.run(5, arrivals=1)
    assert [len(node.assigned) for node in nodes] == [2, 0, 0, 0]
    kinds = [str(each["kind"]) for each in await events_of(etcd)]
    assert kinds[0] == "nodes.more"
    assert kinds[-1] == "nodes.fewer"


async def test_waking_what_nobody_deployed_says_so(mesh: Mesh) -> None:
    with pytest.raises(NotFound) as refused:
        await mesh.scales.wake("unknown", "")
    assert refused.value.field == "name"


async def test_events_that_etcd_does_not_take_are_counted_and_the_rest_comes_later(
    etcd_server: EtcdServer, etcd: Etcd
) -> None:
    async with Events(etcd, "r", clock=lambda: 1_700_000_000.0) as events:
        await etcd_server.stop()
        for nth in range(1100):
            events.note("scale.up", "m", "reason", nth=float(nth))
        await asyncio.sleep(0.05)
        assert 99 <= events.dropped <= 100
        await etcd_server.start()
        async with asyncio.timeout(15):
            while "waiting=0" not in repr(events):
                await asyncio.sleep(0.05)
    found = await events_of(etcd)
    assert len(found) >= 1000
    assert found[0]["registry"] == "r"
    assert (await etcd.get_prefix(records.EVENTS))[0][0].key.startswith(f"{records.EVENTS}1700000000000-")
