"""Load reports over real streams to real registries: to the one that leads, and to the next one when it dies; events read back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from stagemesh import records
from stagemesh.errors import Unavailable
from stagemesh.etcd import Etcd
from stagemesh.reporting import Reporter, leading_registry
from stagemesh.v1.registry_pb2 import (
    EventRecord,
    EventsRequest,
    LoadReport,
    ModelReport,
    ModelSpec,
    Partition,
    ScaleRecord,
    Scaling,
    WakeRequest,
)

Until = Callable[[Callable[[], object]], Awaitable[None]]
Start = Callable[..., Awaitable[Any]]


async def test_reports_follow_the_leader_and_nobody_minds_that_it_is_away(
    start_registry: Start, etcd: Etcd, until: Until
) -> None:
    with pytest.raises(Unavailable, match="no registry leads"):
        await leading_registry(etcd)
    made: list[float] = []

    def make(covers_s: float) -> LoadReport:
        made.append(covers_s)
        return LoadReport(reporter="n", covers_ms=1000, models=[ModelReport(model="m", arrivals=1)])

    async with Reporter(etcd, "n", make) as reporter:
        first = await start_registry()
        await until(lambda: reporter.sent >= 1)
        second = await start_registry()
        # Who stands by takes none.
        refused = second.stub.Report(iter([LoadReport(reporter="n")]))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await refused.read()
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        # A report that makes no sense ends its stream, and nothing else.
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await first.stub.Report(iter([LoadReport()])).read()
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT

        first.kill()
        await until(second.led)
        before = reporter.sent
        await until(lambda: reporter.sent > before)
    assert all(covers_s > 0 for covers_s in made)


async def _read(stream: AsyncIterator[EventRecord], most: int = 100) -> list[EventRecord]:
    found: list[EventRecord] = []
    async for record in stream:
        found.append(record)
        if len(found) == most:
            break
    return found


async def test_a_model_that_sleeps_is_woken_at_any_registry_and_events_tell_so_once(
    start_registry: Start, start_node: Start, etcd: Etcd, until: Until
) -> None:
    registry = await start_registry()
    node = await start_node("n0")
    spec = ModelSpec(
        name="m",
        revision="r1",
        generation=1,
        checkpoint_dtype="F32",
        partitions=[Partition(first_layer=n, end_layer=n + 1, parameter_bytes=100) for n in range(2)],
        replicas=[1, 1],
        scaling=Scaling(min_replicas=0),
    )
    sleeps = ScaleRecord(model="m", replicas=[0, 0])
    await etcd.put(records.scale_key("m"), records.to_json(sleeps))
    await etcd.put(records.model_key("m"), records.to_json(spec))
    await asyncio.sleep(0.5)
    assert node.stages() == []
    follower = registry.stub.Events(EventsRequest(follow=True, kind="scale."))
    following = asyncio.create_task(_read(follower, 1))

    assert (await registry.stub.Wake(WakeRequest(name="m"))).woken
    assert not (await registry.stub.Wake(WakeRequest(name="m"))).woken
    await until(lambda: node.stages() == [0, 1])
    (told,) = await asyncio.wait_for(following, 20)
    follower.cancel()
    assert (told.kind, told.model) == ("scale.wake", "m")
    assert await _read(registry.stub.Events(EventsRequest(model="m", kind="scale."))) == [told]
    later = EventsRequest(kind="scale.", since_unix_ms=told.unix_ms + 1)
    assert await _read(registry.stub.Events(later)) == []
    assert await _read(registry.stub.Events(EventsRequest(model="another"))) == []

    for request, code in (
        (WakeRequest(name="no-such-model"), grpc.StatusCode.NOT_FOUND),
        (WakeRequest(name="no such name"), grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await registry.stub.Wake(request)
        assert error.value.code() == code
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _read(registry.stub.Events(EventsRequest(model="no such name")))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
