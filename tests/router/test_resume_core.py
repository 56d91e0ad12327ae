"""A stream that broke at one router goes on at another one: two cores that share nothing but etcd."""

import asyncio
import random
from contextlib import asynccontextmanager

import grpc
import pytest
from stagemesh.services.router.config import RouterConfig
from stagemesh.services.router.core import RouterCore
from stagemesh.services.router.servicer import InferenceServicer

from stagemesh.errors import FailedPrecondition, InvalidArgument, OutOfRange, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer, create_channel
from stagemesh.v1 import inference_pb2, inference_pb2_grpc
from stagemesh.v1.inference_pb2 import AnswerSoFar, CacheStatus, GenerateRequest, Resume

from .conftest import eventually
from .specs import model


def ask(max_tokens=6, **extra):
    return GenerateRequest(model="m", max_tokens=max_tokens, **{"prompt": "w1 w2 w3", **extra})


async def answer(core, request, metadata=None):
    return [each async for each in core.generate(request, core.context(metadata or {}, 90))]


async def begin(core, request, chunks, metadata=None):
    """The first chunks of an answer whose router then goes away."""
    stream = core.generate(request, core.context(metadata or {}, 90))
    got = [await anext(stream) for _ in range(chunks)]
    await stream.aclose()
    return got


def go_on(request, chunks, n=1):
    """The request that goes on where `chunks` end."""
    again = GenerateRequest()
    again.CopyFrom(request)
    again.resume.token = chunks[0].resume_token
    for index in range(n):
        own = [chunk for chunk in chunks if chunk.index == index]
        again.resume.answers.add(
            index=index,
            token_ids=[token.id for chunk in own for token in chunk.tokens],
            characters=sum(len(chunk.text) for chunk in own),
            finished=any(chunk.finish_reason for chunk in own),
        )
    return again


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def ids_of(chunks):
    return [token.id for chunk in chunks for token in chunk.tokens]


@pytest.fixture
async def second(mesh):
    """Starts another router of the same mesh."""
    started = []

    async def start(**config):
        settings = RouterConfig(etcd="x:1", lease_ttl_s=1, **config)
        core = RouterCore(settings, mesh.etcd, rng=random.Random(99))
        started.append(await core.__aenter__())
        return core

    yield start
    for core in started:
        await core.__aexit__()


@pytest.mark.parametrize("arrived", [1, 2, 5])
async def test_an_answer_goes_on_where_it_stopped(mesh, second, arrived):
    one, other = await mesh.start({"0a": "good"}), await second()
    whole = await answer(one, ask())
    chunks = await begin(one, ask(), arrived)
    rest = await answer(other, go_on(ask(), chunks))
    assert ids_of(chunks) + ids_of(rest) == ids_of(whole) == [10, 11, 12, 13, 14, 15]
    assert text_of(chunks) + text_of(rest) == text_of(whole)
    assert len(ids_of(rest)) == 6 - arrived
    assert (rest[-1].finish_reason, rest[-1].usage.prompt_tokens, rest[-1].usage.completion_tokens) == (
        "length",
        3,
        6,
    )
    assert rest[0].resume_token
    first, opened = mesh.stages["0a"].opened[-2:]
    assert list(opened.token_ids) == [1, 2, 3, *ids_of(chunks)]
    assert (opened.prompt_tokens, opened.max_tokens) == (3, 6)
    assert opened.session != first.session
    assert opened.sampling == first.sampling, "the seed that the first router drew"


async def test_it_may_break_again_and_go_on_at_a_third(mesh, second):
    one, other = await mesh.start({"0a": "good"}), await second()
    chunks = await begin(one, ask(), 2)
    chunks += await begin(other, go_on(ask(), chunks), 2)
    chunks += await answer(one, go_on(ask(), chunks))
    assert ids_of(chunks) == [10, 11, 12, 13, 14, 15]
    assert text_of(chunks).split() == ["w10", "w11", "w12", "w13", "w14", "w15"]
    assert len({opened.sampling.seed for opened in mesh.stages["0a"].opened}) == 1


async def test_routers_may_have_other_defaults(mesh, second):
    one, other = await mesh.start({"0a": "good"}, max_tokens=5), await second(max_tokens=9)
    request = ask()
    request.ClearField("max_tokens")
    chunks = await begin(one, request, 2)
    rest = await answer(other, go_on(request, chunks))
    assert ids_of(chunks) + ids_of(rest) == [10, 11, 12, 13, 14]


async def test_only_answers_that_are_not_finished_go_on(mesh, second):
    one, other = await mesh.start({"0a": "good"}), await second()
    request = ask(n=3, temperature=1.0)
    chunks = await answer(one, request)
    seeds = {opened.session: opened.sampling.seed for opened in mesh.stages["0a"].opened}
    assert len(set(seeds.values())) == 3
    # Of answer 2 nothing had arrived, of answer 1 two tokens, answer 0 was whole.
    kept = [c for c in chunks if c.index == 0] + [c for c in chunks if c.index == 1][:2]
    rest = await answer(other, go_on(request, kept, n=2))
    assert {chunk.index for chunk in rest} == {1, 2}
    for index, missing in ((1, 4), (2, 6)):
        own = [chunk for chunk in rest if chunk.index == index]
        assert len(ids_of(own)) == missing
        assert own[-1].usage.completion_tokens == 6
        assert text_of([c for c in kept if c.index == index] + own) == text_of(
            [c for c in chunks if c.index == index]
        )
    assert sorted(opened.sampling.seed for opened in mesh.stages["0a"].opened[3:]) == sorted(
        list(seeds.values())[1:]
    )


async def test_one_answer_of_three_that_is_left_keeps_its_number(mesh, second):
    one, other = await mesh.start({"0a": "good"}), await second()
    request = ask(n=3)
    chunks = await answer(one, request)
    kept = [c for c in chunks if c.index != 2]
    assert {chunk.index for chunk in await answer(other, go_on(request, kept, n=2))} == {2}


async def test_a_break_before_the_last_chunk_computes_nothing(mesh, second):
    one, other = await mesh.start({"0a": "good"}), await second()
    request = ask(12, stop=["w14 x"])
    chunks = await answer(one, request)
    chunks[-1].finish_reason = ""
    opened = len(mesh.stages["0a"].opened)
    rest = await answer(other, go_on(request, chunks))
    assert [(chunk.text, chunk.finish_reason) for chunk in rest] == [
        ("", "stop" if 20 in ids_of(chunks) else "length")
    ]
    assert rest[0].usage.completion_tokens == len(ids_of(chunks))
    assert len(mesh.stages["0a"].opened) == opened


async def test_what_does_not_belong_together_is_refused_and_named(mesh, second):
    one, other = await mesh.start({"0a": "good"}), await second()
    chunks = await begin(one, ask(), 2)
    good = go_on(ask(), chunks)

    def with_(**changes):
        request = GenerateRequest()
        request.CopyFrom(good)
        for name, value in changes.items():
            setattr(request, name, value)
        return request

    for request, error, field in (
        (with_(prompt="w1 w2"), InvalidArgument, "resume.token"),
        (with_(temperature=0.5), InvalidArgument, "resume.token"),
        (with_(seed=3), InvalidArgument, "resume.token"),
        (with_(max_tokens=7), InvalidArgument, "resume.token"),
        (with_(max_tokens=100), OutOfRange, "max_tokens"),
        (with_(n=2), InvalidArgument, "resume.token"),
        (ask(resume=Resume(token=b"")), InvalidArgument, "resume.token"),
        (ask(resume=Resume(token=b"\1" + b"x" * 60)), InvalidArgument, "resume.token"),
        (
            ask(resume=Resume(token=good.resume.token, answers=[AnswerSoFar(characters=5)])),
            InvalidArgument,
            "resume.answers[0].characters",
        ),
        (
            ask(resume=Resume(token=good.resume.token, answers=[AnswerSoFar(token_ids=[400])])),
            InvalidArgument,
            "resume.answers[0].token_ids",
        ),
    ):
        with pytest.raises(error) as caught:
            await answer(other, request)
        assert caught.value.field == field
    assert len(ids_of(await answer(other, good))) == 4


async def test_a_token_is_good_for_its_tenant_and_its_revision_only(mesh, second, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: one\nk2: two\n")
    one, other = await mesh.start({"0a": "good"}, api_keys=keys), await second(api_keys=keys)
    own, foreign = {"authorization": "Bearer k1"}, {"authorization": "Bearer k2"}
    again = go_on(ask(), await begin(one, ask(), 2, own))
    with pytest.raises(InvalidArgument, match="another tenant"):
        await answer(other, again, foreign)
    assert len(ids_of(await answer(other, again, own))) == 4
    await mesh.put(model(source=str(mesh.checkpoint), revision="r2"))
    await eventually(lambda: other.membership.models["m"].revision == "r2")
    with pytest.raises(FailedPrecondition, match="another revision"):
        await answer(other, again, own)


async def test_with_a_shared_key_tokens_of_others_are_refused(mesh, second, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    one, other, stranger = (
        await mesh.start({"0a": "good"}, resume_key=key),
        await second(resume_key=key),
        await second(),
    )
    again = go_on(ask(), await begin(one, ask(), 2))
    assert len(ids_of(await answer(other, again))) == 4
    with pytest.raises(InvalidArgument, match="not issued"):
        await answer(stranger, again)


async def test_what_goes_on_is_neither_looked_up_nor_stored(mesh, second):
    one = await mesh.start({"0a": "good"}, cache="good")
    other = await second(cache_timeout_ms=500)
    request = ask(seed=5)
    chunks = await begin(one, request, 2)
    rest = await answer(other, go_on(request, chunks))
    assert len(ids_of(rest)) == 4
    assert rest[0].cache == CacheStatus.CACHE_STATUS_UNSPECIFIED
    again = await answer(one, request)
    assert again[0].cache == CacheStatus.CACHE_STATUS_MISS, "half an answer was stored"


async def test_a_cached_answer_that_broke_goes_on(mesh, second):
    one = await mesh.start({"0a": "good"}, cache="good")
    other = await second()
    request = ask(seed=5)
    whole = await answer(one, request)

    async def hit():
        async with asyncio.timeout(10):
            while True:
                chunks = await answer(one, request)
                if chunks[0].cache == CacheStatus.CACHE_STATUS_HIT:
                    return chunks

    chunks = (await hit())[:2]
    rest = await answer(other, go_on(request, chunks))
    assert ids_of(chunks) + ids_of(rest) == ids_of(whole)
    assert text_of(chunks) + text_of(rest) == text_of(whole)


# ---- a router that has to go ----


@asynccontextmanager
async def door_of(core):
    """A stub of a router's gRPC port."""
    door = GrpcServer("127.0.0.1", 0)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core), door.server)
    try:
        async with create_channel(f"127.0.0.1:{await door.start([])}") as channel:
            yield inference_pb2_grpc.InferenceServiceStub(channel)
    finally:
        await door.stop(0)


async def test_a_router_that_goes_hands_its_streams_over(mesh, second):
    core = await mesh.start({"0a": "hang"})
    async with asyncio.timeout(30), door_of(core) as stub:
        calls = [stub.Generate(ask(), metadata=[("x-request-id", f"r-{i}")]) for i in range(3)]
        arrived = [[await anext(aiter(call)), await anext(aiter(call))] for call in calls]
        core.hand_over.begin()
        for number, call in enumerate(calls):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(call))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            error = from_rpc_error(caught.value)
            assert isinstance(error, Unavailable)
            assert "go on at another one" in error.message
            assert dict(caught.value.trailing_metadata())["x-request-id"] == f"r-{number}"
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
            await anext(aiter(stub.Generate(ask())))
    await eventually(lambda: mesh.stages["0a"].cancelled == 3)
    mesh.stages["0a"].mode = "good"
    rest = await answer(await second(), go_on(ask(), arrived[0]))
    assert ids_of(arrived[0]) + ids_of(rest) == [10, 11, 12, 13, 14, 15]


async def test_an_error_says_which_request_it_was(mesh):
    async with door_of(await mesh.start()) as stub:
        call = stub.Embed(inference_pb2.EmbedRequest(model="x"), metadata=[("x-request-id", "mine")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine"
