import asyncio
import time

import grpc
import numpy as np
import pytest
from stagemesh.services.router.cache import choice as cache_choice
from stagemesh.services.router.cache.client import MAX_LOOKUPS
from stagemesh.services.router.cache.flight import CacheUse

from stagemesh.errors import InvalidArgument, StagemeshError
from stagemesh.metrics import REGISTRY
from stagemesh.v1.cache_pb2 import CachedGeneration
from stagemesh.v1.inference_pb2 import CacheControl, CacheStatus, EmbedRequest
from stagemesh.v1.registry_pb2 import ServiceRecord

from .conftest import eventually
from .scripted_cache import ScriptedCache
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


def faults(reason):
    return REGISTRY.get_sample_value("stagemesh_cache_faults_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("slow", "DEADLINE_EXCEEDED"),
        ("wrong digest", "wrong digest"),
        ("truncated", "wrong digest"),
        ("wrong value", "not a value of that kind"),
        ("another's", "wrong digest"),
        ("another shape", "cut off"),
    ],
)
async def test_a_bad_cache_is_passed_by_and_left_alone_for_a_moment(mesh, mode, reason, monkeypatch):
    monkeypatch.setattr(cache_choice, "PAUSE_S", 60.0)
    core = await mesh.start(cache="good")
    await answer(core, ask())
    await mesh.cache.stored.wait()
    mesh.cache.stored.clear()
    await answer(core, ask(2))
    await mesh.cache.stored.wait()
    ((_, mesh.cache.foreign_key), kept) = list(mesh.cache.kept.items())[1]
    mesh.cache.foreign = kept.value
    mesh.cache.mode = mode
    core._cache._timeout_s = 0.3 if mode == "slow" else 20
    before, counted = mesh.cache.lookups, faults(reason)
    for _ in range(3):
        chunks = await answer(core, ask())
        assert chunks[0].cache == ERROR
        assert len(chunks) == 4
    assert mesh.cache.lookups == before + 1
    assert faults(reason) == counted + 1


@pytest.mark.parametrize("texts", [False, True])
async def test_stateless_answers_are_looked_up_and_stored_as_their_request_says(mesh, texts):
    core = await mesh.start(cache="good", task="embed")

    async def asked(**controls):
        if texts:
            request = EmbedRequest(model="m", texts=["w1 w2"], cache_control=CacheControl(**controls))
            return (await core.embed(request, core.context({}))).cache
        request = batch_of_ids(np.array([[1, 2]]))
        request.cache_control.CopyFrom(CacheControl(**controls))
        return (await core.infer(request, core.context({}))).cache

    assert await asked(no_store=True) == BYPASS
    assert mesh.cache.kept == {}
    assert await asked(no_cache=True) == BYPASS, "not looked up, but stored"
    await asyncio.wait_for(mesh.cache.stored.wait(), 5)
    assert await asked() == HIT


@pytest.mark.parametrize("texts", [False, True])
async def test_a_model_that_is_not_cached_is_neither_looked_up_nor_stored(mesh, texts):
    core = await mesh.start(cache="good", task="embed", spec={"cache": False})
    for _ in range(2):
        if texts:
            answered = await core.embed(EmbedRequest(model="m", texts=["w1 w2"]), core.context({}))
        else:
            answered = await core.infer(batch_of_ids(np.array([[1, 2]])), core.context({}))
        assert answered.cache == BYPASS
    assert mesh.cache.lookups == 0
    assert mesh.cache.kept == {}


async def test_tensors_of_another_shape_are_not_believed(mesh):
    core = await mesh.start(cache="good", task="embed")
    for rows in ([[1, 2]], [[1, 2], [3, 4]]):
        mesh.cache.stored.clear()
        await core.infer(batch_of_ids(np.array(rows)), core.context({}))
        await mesh.cache.stored.wait()
    ((_, mesh.cache.foreign_key), kept) = list(mesh.cache.kept.items())[1]
    mesh.cache.foreign, mesh.cache.mode = kept.value, "another shape"
    answered = await core.infer(batch_of_ids(np.array([[1, 2]])), core.context({}))
    assert answered.cache == ERROR
    assert all(tensor.shape[0] == 1 for tensor in answered.outputs)


async def test_the_embedding_of_texts_obeys_the_caller_too(mesh):
    core = await mesh.start(cache="good", task="embed")
    request = EmbedRequest(model="m", texts=["w1 w2"])

    async def status(metadata=None, **control):
        asked = EmbedRequest()
        asked.CopyFrom(request)
        if control:
            asked.cache_control.CopyFrom(CacheControl(**control))
        found = (await core.embed(asked, core.context(metadata or {}))).cache
        await asyncio.gather(*core._cache._stores)
        return found

    assert await status({"cache-control": "no-store"}) == BYPASS
    assert await status() == MISS
    assert await status() == HIT
    assert await status(no_cache=True) == BYPASS
    assert await status(namespace="n") == MISS
    assert await status({"x-stagemesh-cache-namespace": "n"}) == HIT
    assert mesh.cache.lookups == 4
    with pytest.raises(InvalidArgument, match="colour"):
        await status({"x-stagemesh-cache-colour": "red"})


async def test_what_the_caller_says_goes_to_the_cache(mesh):
    core = await mesh.start(cache="good", spec={"cache_ttl_s": 50})
    await answer(core, ask())
    await mesh.cache.stored.wait()
    mesh.cache.stored.clear()
    await answer(core, ask(), {"cache-control": "no-cache, ttl=7, max-age=3", "x-stagemesh-cache-tags": "a"})
    await mesh.cache.stored.wait()
    (kept,) = mesh.cache.kept.values()  # in the place of the first
    assert (kept.ttl_s, sorted(kept.tags)) == (7, ["model:m", "revision:r1", "tag:a"])
    assert mesh.cache.lookups == 1
    metadata = {"x-stagemesh-cache-namespace": "team/a", "x-stagemesh-cache-max-age": "9"}
    chunks = await answer(core, ask(), metadata)
    assert chunks[0].cache == MISS
    assert mesh.cache.asked.max_age_s == 9
    await asyncio.gather(*core._cache._stores)
    apart = list(mesh.cache.kept.values())[1]
    assert (apart.ttl_s, "namespace:team/a" in apart.tags) == (50, True)
    assert (await answer(core, ask(), metadata))[0].cache == HIT


async def test_a_sampled_answer_is_given_again_only_when_that_is_asked_for(mesh):
    core = await mesh.start(cache="good")
    wanted = {"x-stagemesh-cache-sampled": "true"}
    assert (await answer(core, ask(temperature=1.0)))[0].cache == BYPASS
    first = await answer(core, ask(temperature=1.0), wanted)
    await asyncio.gather(*core._cache._stores)
    second = await answer(core, ask(temperature=1.0), wanted)
    assert (first[0].cache, second[0].cache) == (MISS, HIT)
    # The token would go on with another seed than the kept answer has.
    assert first[0].resume_token
    assert not second[0].resume_token
    assert (await answer(core, ask(temperature=1.0)))[0].cache == BYPASS


async def test_a_kept_stream_comes_in_its_chunks_or_at_once(mesh):
    core = await mesh.start(cache="good", cache_replay="whole")
    first = await answer(core, ask())
    await mesh.cache.stored.wait()
    (whole,) = await answer(core, ask())
    chunks = await answer(core, ask(), {"x-stagemesh-cache-replay": "chunks"})
    assert whole.cache == chunks[0].cache == HIT
    assert [chunk.text for chunk in chunks] == [chunk.text for chunk in first]
    assert whole.text == text_of(first)
    assert [token.id for token in whole.tokens] == [10, 11, 12, 13]
    assert [token.position for token in whole.tokens] == [3, 4, 5, 6]
    assert (whole.finish_reason, whole.usage) == (first[-1].finish_reason, first[-1].usage)


async def test_a_generation_cut_off_is_not_stored(mesh, hopeless):
    core = await mesh.start({"0a": "end early"}, cache="good")
    with pytest.raises(StagemeshError):
        await answer(core, ask())
    left = core.generate(ask(), core.context({}, 30))
    mesh.stages["0a"].mode = "good"
    await anext(left)
    await left.aclose()
    await asyncio.gather(*core._cache._stores)
    assert mesh.cache.kept == {}


async def test_what_would_not_be_believed_is_not_stored_and_counted(mesh):
    core = await mesh.start(cache="good")

    async def stored(fault):
        use = CacheUse(
            tenant="t",
            key=b"k" * 32,
            spec=core.membership.models["m"],
            kind=CachedGeneration,
            fault=lambda value: fault,
            deadline=time.monotonic() + 30,
        )
        with await core._cache.ask(use) as asked:
            asked.store(CachedGeneration(finish_reason="length"))
        await asyncio.gather(*core._cache._stores)
        return len(mesh.cache.kept)

    assert await stored("scripted fault") == 0
    reason = {"reason": "scripted fault"}
    assert REGISTRY.get_sample_value("stagemesh_cache_unstored_total", reason) == 1
    assert await stored("") == 1


async def test_the_tenant_is_the_keys_and_not_what_the_caller_says(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: one\nk2: two\n")
    core = await mesh.start(cache="good", api_keys=keys)
    for key in ("k1", "k2"):
        said = {"authorization": f"Bearer {key}", "x-tenant": "one", "tenant": "one"}
        assert (await answer(core, ask(), said))[0].cache == MISS
        await asyncio.gather(*core._cache._stores)
    assert sorted(tenant for tenant, _ in mesh.cache.kept) == ["one", "two"]
    assert len({key for _, key in mesh.cache.kept}) == 2


async def test_a_lost_cache_leaves_its_keys_to_the_next_choice(mesh):
    core = await mesh.start(cache="good")
    second = await mesh._stack.enter_async_context(ScriptedCache())
    await mesh.put(ServiceRecord(kind="cache", id="d", address=second.address))
    await eventually(lambda: len(core.membership.services) == 2)
    both = [mesh.cache, second]
    # Their ports, and so who keeps what, are others each time: of so many, each has some.
    prompts = [f"w{number}" for number in range(1, 33)]
    for prompt in prompts:
        await answer(core, ask(prompt=prompt))
    await asyncio.gather(*core._cache._stores)
    assert all(cache.kept for cache in both)
    assert sum(len(cache.kept) for cache in both) == len(prompts)
    held = dict(mesh.cache.kept)
    await second.door.stop(0)
    statuses = []
    async with asyncio.timeout(30):
        while statuses != [HIT] * len(prompts):
            statuses = []
            for prompt in prompts:
                statuses.append((await answer(core, ask(prompt=prompt)))[0].cache)
                await asyncio.gather(*core._cache._stores)
                # It is left alone for longer than this test takes.
                core._cache._pauses.failed(second.address, time.monotonic() + 60)
    assert held.items() <= mesh.cache.kept.items()


async def test_a_dead_cache_is_passed_by(mesh):
    core = await mesh.start(cache="good")
    await mesh.cache.door.stop(0)
    assert (await answer(core, ask()))[0].cache == ERROR
    await mesh.remove("/stagemesh/v1/services/")
    await eventually(lambda: not core.membership.services)
    assert (await answer(core, ask()))[0].cache == BYPASS


async def test_a_burst_does_not_make_a_cache_look_slow(mesh):
    """Asked all at once the last would wait in the cache's queue, and time out there: they wait before their time runs."""
    core = await mesh.start(cache="good", task="embed")
    asked = (core.infer(batch_of(n), core.context({})) for n in range(200))
    await asyncio.gather(*asked)
    assert mesh.cache.lookups >= MAX_LOOKUPS
    assert 1 < mesh.cache.most <= MAX_LOOKUPS


async def test_a_burst_does_not_wait_for_a_dead_cache_one_after_another(mesh):
    core = await mesh.start(cache="slow", task="embed", cache_timeout_ms=500)
    asked = (core.infer(batch_of(n), core.context({})) for n in range(200))
    assert {response.cache for response in await asyncio.gather(*asked)} == {ERROR}
    # Fewer where the time of some was over before their calls began.
    assert mesh.cache.lookups <= MAX_LOOKUPS


async def test_the_router_is_connected_to_a_cache_before_the_first_lookup(mesh):
    core = await mesh.start(cache="good", task="embed")
    channel = core.channels._channel(mesh.cache.address)
    await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.READY)
    assert mesh.cache.lookups == 0
