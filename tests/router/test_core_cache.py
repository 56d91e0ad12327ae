import asyncio

import grpc
import numpy as np
import pytest
from stagemesh.services.router.cache_client import MAX_LOOKUPS

from stagemesh.v1.inference_pb2 import CacheStatus

from .conftest import eventually
from .test_core_generate import answer, ask, text_of
from .test_core_infer import ask as batch_of_ids

HIT, MISS = CacheStatus.CACHE_STATUS_HIT, CacheStatus.CACHE_STATUS_MISS
BYPASS, ERROR = CacheStatus.CACHE_STATUS_BYPASS, CacheStatus.CACHE_STATUS_ERROR


def batch_of(n):
    return batch_of_ids(np.array([[n % 100, n // 100]]))


def sessions(mesh):
    return sum(len(stage.opened) for stage in mesh.stages.values())


async def test_the_second_time_the_cache_answers(mesh):
    core = await mesh.start(cache="good")
    first = await answer(core, ask())
    await mesh.cache.stored.wait()
    second = await answer(core, ask(), {"x-request-id": "again"})
    assert (first[0].cache, second[0].cache) == (MISS, HIT)
    assert sessions(mesh) == 1
    assert text_of(first) == text_of(second)
    assert [t.id for c in first for t in c.tokens] == [t.id for c in second for t in c.tokens]
    assert [t.position for c in first for t in c.tokens] == [t.position for c in second for t in c.tokens]
    assert second[0].request_id == "again"
    assert not second[0].route
    assert (second[-1].finish_reason, second[-1].usage) == (first[-1].finish_reason, first[-1].usage)
    other = await answer(core, ask(prompt="w4"))
    assert other[0].cache == MISS


async def test_what_must_not_be_looked_up_or_stored(mesh):
    core = await mesh.start(cache="good")
    assert (await answer(core, ask(temperature=1.0)))[0].cache == BYPASS
    assert (await answer(core, ask(cache_no_lookup=True, cache_no_store=True)))[0].cache == BYPASS
    assert (await answer(core, ask(cache_no_store=True)))[0].cache == MISS
    assert mesh.cache.kept == {}
    assert mesh.cache.lookups == 1


async def test_a_broken_generation_is_not_stored(mesh, hopeless):
    core = await mesh.start({"0a": "break later"}, cache="good")
    with pytest.raises(Exception, match="broke"):
        await answer(core, ask())
    mesh.stages["0a"].mode = "good"
    assert (await answer(core, ask()))[0].cache == MISS


@pytest.mark.parametrize("mode", ["slow", "wrong digest", "wrong value"])
async def test_a_bad_cache_is_passed_by_and_left_alone_for_a_moment(mesh, mode):
    core = await mesh.start(cache="good")
    await answer(core, ask())
    await mesh.cache.stored.wait()
    mesh.cache.mode = mode
    before = mesh.cache.lookups
    for _ in range(3):
        chunks = await answer(core, ask())
        assert chunks[0].cache == ERROR
        assert len(chunks) == 4
    assert mesh.cache.lookups == before + 1


async def test_a_dead_cache_is_passed_by(mesh):
    core = await mesh.start(cache="good")
    await mesh.cache.door.stop(0)
    assert (await answer(core, ask()))[0].cache == ERROR
    await mesh.remove("/stagemesh/v1/services/")
    await eventually(lambda: not core.membership.services)
    assert (await answer(core, ask()))[0].cache == BYPASS


async def test_a_burst_does_not_make_a_cache_look_slow(mesh):
    """Asked all at once the last would wait 2 s in the cache's queue; a second counts as an error."""
    core = await mesh.start(cache="one by one", task="embed", cache_timeout_ms=1000)
    asked = (core.infer(batch_of(n), core.context({})) for n in range(400))
    assert {response.cache for response in await asyncio.gather(*asked)} == {MISS}


async def test_a_burst_does_not_wait_for_a_dead_cache_one_after_another(mesh):
    core = await mesh.start(cache="slow", task="embed")
    asked = (core.infer(batch_of(n), core.context({})) for n in range(200))
    assert {response.cache for response in await asyncio.gather(*asked)} == {ERROR}
    assert mesh.cache.lookups == MAX_LOOKUPS


async def test_the_router_is_connected_to_a_cache_before_the_first_lookup(mesh):
    core = await mesh.start(cache="good", task="embed")
    channel = core.channels._channel(mesh.cache.address)
    await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.READY)
    assert mesh.cache.lookups == 0
