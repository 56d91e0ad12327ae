"""Routers that hold copies, over real caches and a real etcd: what callers get, and what reaches the copies."""

import asyncio
import hashlib
import time

import numpy as np
import pytest
from stagemesh.services.router.servicer import InferenceServicer

from stagemesh.client import AsyncClient
from stagemesh.errors import InvalidArgument, ResourceExhausted, StagemeshError
from stagemesh.grpc_server import GrpcServer
from stagemesh.metrics import REGISTRY
from stagemesh.v1 import cache_pb2, inference_pb2_grpc
from stagemesh.v1.inference_pb2 import EmbedRequest

from .conftest import eventually
from .real_cache import RealCache
from .specs import model
from .test_cache_flights import HIT, MISS, Mesh, mesh
from .test_core_generate import answer, ask, text_of
from .test_core_infer import ask as tensors

__all__ = ["mesh"]
ERROR = 4


async def settled(*cores):
    for core in cores:
        await asyncio.gather(*core._cache._stores)


async def copied(mesh: Mesh, *cores, request=None):
    """Each router has a copy of the answer."""
    request = ask() if request is None else request
    mesh.stage.free.set()
    await answer(cores[0], request)
    await settled(cores[0])
    for core in cores:
        assert (await answer(core, request))[0].cache == HIT
        assert len(core._cache.near) == 1


def lookups(mesh: Mesh):
    return sum(cache.store.stats.hits + cache.store.stats.misses for cache in mesh.caches)


async def invalidate(mesh: Mesh, core, **what):
    stub = core.channels.cache(mesh.caches[0].record.address)
    return await stub.Invalidate(cache_pb2.CacheInvalidateRequest(**what), timeout=10)


async def status(core, request, metadata=None):
    found = (await answer(core, request, metadata))[0].cache
    await settled(core)
    return found


async def test_a_copy_answers_without_the_cache_and_says_the_same(mesh):
    (core,) = await mesh.start()
    mesh.stage.free.set()
    first = await answer(core, ask())
    await settled(core)
    asked_before = lookups(mesh)
    answers = [await answer(core, ask(), {"x-request-id": f"id-{n}"}) for n in range(5)]
    assert lookups(mesh) == asked_before + 1, "the first hit makes the copy"
    for number, chunks in enumerate(answers):
        assert chunks[0].cache == HIT
        assert chunks[0].request_id == f"id-{number}"
        assert [chunk.text for chunk in chunks] == [chunk.text for chunk in first]
        assert [t.position for c in chunks for t in c.tokens] == [3, 4, 5, 6]
        assert chunks[-1].usage == first[-1].usage
        assert not chunks[0].route
    (whole,) = await answer(core, ask(), {"x-stagemesh-cache-replay": "whole"})
    assert whole.text == text_of(first)
    assert mesh.stage.sessions == 1
    # What the router answered by itself is told to a cache with the next lookup.
    await answer(core, ask(prompt="w9"))
    assert (await mesh.caches[0].servicer.GetStats(cache_pb2.CacheStatsRequest(), None)).near_hits == 5
    assert REGISTRY.get_sample_value("stagemesh_cache_near_hits_total") >= 5


async def test_tensors_and_requests_known_by_their_bytes(mesh):
    (core,) = await mesh.start(task="embed")
    mesh.stage.free.set()
    request = tensors(np.array([[1, 2]]))
    statuses, outputs = [], []
    for number in range(4):
        found = await core.infer(request, core.context({"x-request-id": f"i{number}"}, 30))
        await settled(core)
        assert found.request_id == f"i{number}"
        statuses.append(found.cache)
        outputs.append(found.outputs[0].data)
    assert statuses == [MISS, HIT, HIT, HIT]
    assert len(set(outputs)) == 1
    assert len(core._at_once.batches) == 1
    # Known, and drained all the same: whoever leaves takes no more.
    core._gate.closed = True
    with pytest.raises(StagemeshError, match="shutting down"):
        await core.infer(request, core.context({}, 30))


async def test_copies_are_told_of_in_the_report_as_other_hits_are(mesh):
    """Tensors and embeddings as well as generations: all lookups, all hits, and the bytes that they gave."""
    (core,) = await mesh.start(task="embed")
    mesh.stage.free.set()
    for ask_again in (
        lambda: core.infer(tensors(np.array([[1, 2]])), core.context({}, 30)),
        lambda: core.embed(EmbedRequest(model="m", texts=["w1 w2"]), core.context({}, 30)),
    ):
        before = core._cache._near_hits._value.get()
        for _ in range(4):
            await ask_again()
            await settled(core)
        assert core._cache._near_hits._value.get() - before == 2, "a miss, a hit at the cache, and two copies"
    (usage,) = core._generations.semantics.usage._untold.values()
    assert (usage.model, usage.lookups, usage.exact_hits) == ("m", 8, 6)
    assert usage.bytes_served > 6 * 16


async def test_copies_count_as_requests_of_their_tenant_and_take_no_tokens(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "keys: {k1: copies, k2: frugal}\ntenants: {copies: {requests_per_min: 6, burst_s: 60}, frugal: {tokens_per_min: 30, burst_s: 60}}\n"
    )
    (core,) = await mesh.start(api_keys=keys)
    mesh.stage.free.set()

    def plain(who):
        return status(core, ask(), {"authorization": f"Bearer {who}"})

    assert [await plain("k1") for _ in range(6)] == [MISS, *[HIT] * 5]
    with pytest.raises(ResourceExhausted, match="quota requests_per_min of tenant 'copies'"):
        await plain("k1")
    assert [await plain("k2") for _ in range(9)] == [MISS, *[HIT] * 8]
    scopes = core.tenants._quotas._scopes.values()
    assert not any(scope.active for scope in scopes), "each is over"


async def test_copies_of_tensors_count_as_requests_too(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: {k1: copies}\ntenants: {copies: {requests_per_min: 3, burst_s: 60}}\n")
    (core,) = await mesh.start(task="embed", api_keys=keys)
    mesh.stage.free.set()
    for _ in range(3):
        await core.infer(tensors(np.array([[1, 2]])), core.context({"authorization": "Bearer k1"}, 30))
        await settled(core)
    with pytest.raises(ResourceExhausted, match="quota requests_per_min of tenant 'copies'"):
        await core.infer(tensors(np.array([[1, 2]])), core.context({"authorization": "Bearer k1"}, 30))


@pytest.mark.parametrize(
    "what", [{"tag": "model:m"}, {"tags": ["tag:doc"]}, {"prefix": "namespace:te"}, {"tenant": "default"}]
)
async def test_an_invalidation_reaches_every_routers_copies_within_a_second(mesh, what):
    one, two = await mesh.start(routers=2)
    said = {"x-stagemesh-cache-namespace": "team", "x-stagemesh-cache-tags": "doc"}
    mesh.stage.free.set()
    assert await status(one, ask(), said) == MISS
    for core in (one, two):
        for _ in range(3):
            assert await status(core, ask(), said) == HIT
    started = time.monotonic()
    assert (await invalidate(mesh, one, **what)).announced
    await eventually(lambda: not len(one._cache.near) and not len(two._cache.near), 10)
    assert time.monotonic() - started < 5, "a second, and what a busy machine takes"
    assert await status(two, ask(), said) == MISS
    assert mesh.stage.sessions == 2


async def test_a_redeployed_revision_never_answers_from_copies(mesh):
    (core,) = await mesh.start()
    await copied(mesh, core)
    await mesh.put(model(source=str(mesh.checkpoint), cache=True, revision="r2"))
    await eventually(lambda: core.membership.models["m"].revision == "r2")
    assert len(core._cache.near) == 0
    with pytest.raises(StagemeshError):  # nobody serves the new one, and nobody answers for it
        await answer(core, ask(), timeout_s=1.0)


async def test_age_and_freshness_hold_for_copies(mesh):
    (core,) = await mesh.start()
    await copied(mesh, core)
    assert await status(core, ask(), {"cache-control": "max-age=100"}) == HIT
    await asyncio.sleep(1.1)
    assert await status(core, ask(), {"cache-control": "max-age=1"}) == MISS
    assert await status(core, ask(), {"cache-control": "no-store"}) == 3  # bypass
    assert await status(core, ask(), {"cache-control": "namespace=elsewhere"}) == MISS


async def test_a_newer_answer_takes_the_place_of_a_copy(mesh):
    (core,) = await mesh.start()
    await copied(mesh, core)
    before = lookups(mesh)
    assert (await answer(core, ask(), {"cache-control": "no-cache"}))[0].cache == 3
    await settled(core)
    assert len(core._cache.near) == 0
    assert await status(core, ask()) == HIT
    assert lookups(mesh) == before + 1


async def test_without_copies_every_hit_asks_the_cache(mesh):
    (core,) = await mesh.start(cache_near_bytes=0)
    mesh.stage.free.set()
    await status(core, ask())
    before = lookups(mesh)
    for _ in range(3):
        assert await status(core, ask()) == HIT
    assert lookups(mesh) == before + 3


async def test_another_tenants_answer_is_neither_given_nor_waited_for(mesh, tmp_path):
    """Copies, entries and flights are apart: what one tenant asks for takes as long as if nobody had asked before."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: one\nk2: two\n")
    (core,) = await mesh.start(api_keys=keys)
    one, two = ({"authorization": f"Bearer k{n}"} for n in (1, 2))
    first = asyncio.create_task(answer(core, ask(), one))
    await eventually(lambda: mesh.stage.sessions == 1, 20)
    other = asyncio.create_task(answer(core, ask(), two))
    # It computes beside the first, which is not done: it did not wait for the other tenant's lease.
    await eventually(lambda: mesh.stage.sessions == 2, 20)
    assert mesh.caches[0].flights.leases.waiting == 0
    mesh.stage.free.set()
    assert [chunks[0].cache for chunks in await asyncio.gather(first, other)] == [MISS, MISS]
    await settled(core)
    assert await status(core, ask(prompt="w7"), one) == MISS
    for _ in range(3):
        assert await status(core, ask(prompt="w7"), one) == HIT
    sessions = mesh.stage.sessions
    assert await status(core, ask(prompt="w7"), two) == MISS
    assert mesh.stage.sessions == sessions + 1


async def test_a_cache_that_dies_and_comes_back_has_its_keys_again(mesh):
    (core,) = await mesh.start(caches=2, cache_near_bytes=0)
    mesh.stage.free.set()
    prompts = [f"w{n}" for n in range(1, 21)]
    for prompt in prompts:
        assert await status(core, ask(prompt=prompt)) == MISS
    lost = mesh.caches[1]
    kept, moved = (len(cache.store) for cache in mesh.caches)
    assert min(kept, moved) > 0
    assert kept + moved == len(prompts)
    await lost.door.stop(0)
    await mesh.etcd.delete("/stagemesh/v1/services/cache/real1")
    await eventually(lambda: len(core.membership.services_of("cache")) == 1)
    found = [await status(core, ask(prompt=prompt)) for prompt in prompts]
    assert (found.count(HIT), found.count(MISS)) == (kept, moved)
    # It comes back empty: the keys that are its own, and no others, go there again.
    back = await mesh.stack.enter_async_context(RealCache(mesh.etcd, "real1"))
    await mesh.put(back.record)
    await eventually(lambda: len(core.membership.services_of("cache")) == 2)
    found = [await status(core, ask(prompt=prompt)) for prompt in prompts]
    assert found.count(HIT) + found.count(MISS) == len(prompts)
    assert 0 < found.count(MISS) == len(back.store) < len(prompts)
    assert {await status(core, ask(prompt=prompt)) for prompt in prompts} == {HIT}


async def test_what_waits_for_a_cache_goes_in_one_call(mesh):
    (core,) = await mesh.start(task="embed")
    mesh.stage.free.set()
    calls = {"one": 0, "many": 0}
    held = asyncio.Event()
    stub = core.channels.cache(mesh.caches[0].record.address)

    class Counted:
        Lookup, LookupStream = stub.Lookup, stub.LookupStream

        async def Store(self, request, timeout):
            calls["one"] += 1
            await held.wait()
            return await stub.Store(request, timeout=timeout)

        async def StoreMany(self, request, timeout):
            calls["many"] += 1
            return await stub.StoreMany(request, timeout=timeout)

    core.channels._caches[mesh.caches[0].record.address] = Counted()
    await core.infer(tensors(np.array([[1, 1]])), core.context({}, 30))
    await eventually(lambda: calls["one"] == 1)
    await asyncio.gather(*(core.infer(tensors(np.array([[2, n]])), core.context({}, 30)) for n in range(20)))
    held.set()
    await settled(core)
    assert calls == {"one": 1, "many": 1}
    assert len(mesh.caches[0].store) == 21
    assert len(core._cache._leases) == 0


async def test_one_bad_entry_of_many_does_not_cost_the_others(mesh):
    (core,) = await mesh.start()
    stub = core.channels.cache(mesh.caches[0].record.address)

    def entry(key, **more):
        digest = hashlib.sha256(key + b"v").digest()
        return cache_pb2.CacheStoreRequest(
            **{"tenant": "t", "key": key, "value": b"v", "digest": digest, **more}
        )

    good, bad = (
        entry(b"a" * 32),
        [entry(b"short"), entry(b"b" * 32, digest=b"x" * 32), entry(b"c" * 32, tenant="")],
    )
    request = cache_pb2.CacheStoreManyRequest(entries=[bad[0], good, *bad[1:]])
    results = (await stub.StoreMany(request, timeout=10)).results
    assert [each.stored for each in results] == [False, True, False, False]
    assert [each.reason.split(":")[0] for each in results if not each.stored] == [
        "key",
        "the digest is not the SHA-256 of key and value",
        "tenant",
    ]
    assert len(mesh.caches[0].store) == 1


async def test_clients_say_what_they_want_of_the_cache(mesh):
    (core,) = await mesh.start(task="embed")
    mesh.stage.free.set()
    door = GrpcServer("127.0.0.1", 0)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core), door.server)
    address = f"127.0.0.1:{await door.start(['stagemesh.v1.InferenceService'])}"
    ids = {"input_ids": np.array([[3, 4]])}
    try:
        async with AsyncClient(address) as client:

            async def infer(cache_control=""):
                found = await client.infer_detailed("m", ids, cache_control=cache_control)
                await settled(core)
                return found.cache

            async def embed(cache_control=""):
                found = await client.embed_detailed("m", ["w1 w2"], cache_control=cache_control)
                await settled(core)
                return found.cache

            for way in (infer, embed):
                assert await way("no-store") == "bypass"
                assert await way("ttl=60, tag=a, tag=b") == "miss"
                assert await way() == await way() == "hit"
                assert await way("no-cache") == "bypass"
                assert await way("namespace=team") == "miss"
                assert await way("namespace=team, max-age=1000") == "hit"
                with pytest.raises(InvalidArgument, match="colour"):
                    await way("colour=red")
                with pytest.raises(InvalidArgument, match="ttl_s") as refused:
                    await way("ttl=0")  # the router's to say
                assert refused.value.field == "cache_control.ttl_s"
    finally:
        await door.stop(0)
    entries = mesh.caches[0].store._entries.values()
    assert sum(each.tags >= {"tag:a", "tag:b"} for each in entries) == 0, "no-cache stored anew, without tags"
    assert sum("namespace:team" in each.tags for each in entries) == 2
