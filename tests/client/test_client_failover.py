"""Both clients with routers that break: the same scenes for each of the two."""

import asyncio
import socket
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from resuming_router import WORDS, ResumingRouter, token_id

from stagemesh import AsyncClient, Client
from stagemesh.client import AsyncGenerationStream, GenerationStream
from stagemesh.errors import Cancelled, ResourceExhausted, Unavailable

TEXT = "".join(WORDS)
IDS = tuple(token_id(0, number) for number in range(len(WORDS)))


class Sync:
    """The blocking client as the scenes use it."""

    def __init__(self):
        self._client = None

    def make(self, addresses, **settings):
        self._client = Client(addresses, **{"timeout_s": 20, **settings})
        return self

    def __getattr__(self, name):
        return getattr(self._client, name)

    def first(self, stream, chunks):
        return [next(stream) for _ in range(chunks)]

    def rest(self, stream):
        return list(stream)

    def whole(self, stream):
        return stream.generation()

    def leave(self, stream):
        stream.close()

    def end(self):
        self._client.close()


class Async:
    """The asyncio client as the scenes use it."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self._client = None

    def make(self, addresses, **settings):
        async def make():
            return AsyncClient(addresses, **{"timeout_s": 20, **settings})

        self._client = self._runner.run(make())
        return self

    @property
    def stats(self):
        return self._client.stats

    @property
    def address(self):
        return self._client.address

    def _run(self, make):
        async def run():
            return await make()

        return self._runner.run(run())

    def generate(self, *args, **settings):
        return self._run(lambda: self._client.generate(*args, **settings))

    def embed(self, *args, **settings):
        return self._run(lambda: self._client.embed(*args, **settings))

    def infer(self, *args, **settings):
        return self._run(lambda: self._client.infer(*args, **settings))

    def stream(self, *args, **settings):
        async def open_():
            return self._client.stream(*args, **settings)

        return self._runner.run(open_())

    def first(self, stream, chunks):
        async def read():
            return [await anext(stream) for _ in range(chunks)]

        return self._runner.run(read())

    def rest(self, stream):
        async def read():
            return [chunk async for chunk in stream]

        return self._runner.run(read())

    def whole(self, stream):
        return self._run(stream.generation)

    def leave(self, stream):
        self._run(stream.aclose)

    def end(self):
        self._run(self._client.aclose)
        self._runner.close()


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def driver(request):
    driver = request.param()
    yield driver
    driver.end()


@pytest.fixture
def routers():
    found = [ResumingRouter(), ResumingRouter()]
    yield found
    for router in found:
        router.kill()


def started(driver, routers, **settings):
    """The client, the router that it asks first, and the other one."""
    client = driver.make([router.address for router in routers], **settings)
    first, other = sorted(routers, key=lambda router: router.address != client.address)
    return client, first, other


@pytest.mark.parametrize("how", ["gone", "cancelled", "handed over"])
@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_a_stream_goes_on_at_the_other_router(driver, routers, how, chunks):
    client, first, other = started(driver, routers)
    first.break_after, first.how = chunks, how
    stream = client.stream("m", "p", temperature=1.0)
    assert client.first(stream, 1)[0].text == WORDS[0]
    assert stream.target == first.address
    generation = client.whole(stream)
    assert (generation.text, generation.token_ids, generation.finish_reason) == (TEXT, IDS, "length")
    assert generation.logprobs == tuple(-float(number) for number in range(len(WORDS)))
    assert (generation.usage.prompt_tokens, generation.usage.completion_tokens) == (3, len(WORDS))
    assert generation.route[0].replica_id == other.address == stream.target
    assert generation.cache == "miss"
    assert first.ids == other.ids
    assert len(other.requests[0].resume.answers[0].token_ids) == chunks
    stats = client.stats
    assert (stats.resumed, stats.moves, stats.retries, stats.gave_up) == (1, 1, 1, 0)
    assert stats.failures == {first.address: 1, other.address: 0}
    assert stats.target == other.address


def test_a_stream_that_broke_before_its_first_chunk_begins_anew(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after = 0
    assert client.generate("m", "p").token_ids == IDS
    assert not other.requests[0].HasField("resume")
    assert client.stats.resumed == 0


def test_a_killed_router_takes_no_stream_with_it(driver, routers):
    client, first, other = started(driver, routers)
    first.hold_after = 2
    streams = [client.stream("m", "p") for _ in range(4)]
    begun = [client.first(stream, 1)[0].text for stream in streams]
    first.kill()
    for stream, text in zip(streams, begun, strict=True):
        assert text + "".join(chunk.text for chunk in client.rest(stream)) == TEXT
    assert {len(request.resume.answers[0].token_ids) for request in other.requests} <= {1, 2}
    assert (client.stats.resumed, client.stats.gave_up) == (4, 0)


def test_several_answers_go_on_where_each_of_them_stopped(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after = 8  # answer 0 has 3 tokens then, 1 as well, 2 has two
    generation = client.generate("m", "p", n=3)
    assert [choice.text for choice in generation.choices] == [TEXT] * 3
    assert [choice.token_ids[0] for choice in generation.choices] == [0, 100, 200]
    assert generation.usage.completion_tokens == 3 * len(WORDS)
    so_far = {answer.index: len(answer.token_ids) for answer in other.requests[0].resume.answers}
    assert so_far == {0: 3, 1: 3, 2: 2}


def test_a_stream_may_break_at_every_router_in_turn(driver, routers):
    client, *_ = started(driver, routers)
    for router in routers:
        router.break_after = 1
    assert client.generate("m", "p").token_ids == IDS
    assert client.stats.retries == len(WORDS) - 1


def test_a_break_after_the_last_chunk_is_none(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after, first.how = 0, "after all"
    stream = client.stream("m", "p")
    assert "".join(chunk.text for chunk in client.rest(stream)) == TEXT
    assert client.whole(stream).token_ids == IDS
    assert other.requests == []


def test_a_router_that_would_begin_anew_is_passed_over(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after, first.times = 2, 1
    other.old = True
    stream = client.stream("m", "p")
    assert "".join(chunk.text for chunk in client.rest(stream)) == TEXT
    assert [
        len(each.resume.answers[0].token_ids) if each.resume.answers else 0 for each in first.requests
    ] == [
        0,
        2,
    ]


def test_a_stream_without_a_token_ends_with_what_broke_it(driver, routers):
    client, first, other = started(driver, routers)
    first.old, first.break_after = True, 2
    stream = client.stream("m", "p")
    client.first(stream, 2)
    with pytest.raises(Unavailable, match="Socket closed"):
        client.rest(stream)
    assert other.requests == []


def test_unary_calls_go_to_the_other_router(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after = 0
    assert client.embed("m", "text").tolist() == [[1.0]]
    first.break_after, other.break_after = None, 0
    array = np.arange(3, dtype=np.float32)
    assert client.infer("m", {"x": array})["x"].tolist() == [0, 1, 2]
    assert first.ids[0] == other.ids[0], "attempts go by one request id"
    assert first.ids[-1] == other.ids[-1]
    assert client.stats.moves >= 2


def test_overload_is_tried_at_the_other_router_and_said_when_both_are(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after, first.how = 0, "busy"
    assert client.embed("m", "text").tolist() == [[1.0]]
    other.break_after, other.how = 0, "busy"
    with pytest.raises(ResourceExhausted) as caught:
        client.embed("m", "text")
    assert caught.value.retry_after_s == 1.0


def test_the_deadline_is_over_all_attempts(driver, routers):
    client, first, other = started(driver, routers)
    first.break_after = 1
    stream = client.stream("m", "p", timeout_s=9.0)
    client.first(stream, 1)
    time.sleep(0.5)
    client.rest(stream)
    assert first.left[0] > 8.0
    assert other.left[0] < 8.7


def test_one_router_that_comes_back_is_waited_for(driver, routers):
    router = routers[0]
    client = driver.make(router.address)
    stream = client.stream("m", "p")
    client.first(stream, 1)
    router.kill()
    router.restart()
    assert "".join(chunk.text for chunk in client.rest(stream)) == "".join(WORDS[1:])


def test_attempts_1_turns_it_off(driver, routers):
    client, first, other = started(driver, routers, attempts=1)
    first.break_after = 2
    with pytest.raises(Unavailable):
        client.generate("m", "p")
    assert other.requests == []
    assert client.embed("m", "x").tolist() == [[1.0]], "the next call asks the other one"
    assert client.stats.retries == 0


def test_a_stream_that_was_left_goes_nowhere(driver, routers):
    client, _, other = started(driver, routers)
    stream = client.stream("m", "p")
    client.first(stream, 1)
    client.leave(stream)
    with pytest.raises((Cancelled, asyncio.CancelledError)):
        client.rest(stream)
    assert other.requests == []
    assert client.stats.retries == 0


def test_nothing_listens_anywhere(driver):
    client = driver.make("127.0.0.1:9,127.0.0.1:10")
    with pytest.raises(Unavailable, match=r"^nothing answers at 127\.0\.0\.1:\d+, 127\.0\.0\.1:\d+$"):
        client.generate("m", "p")


@contextmanager
def silent(*, accepts):
    """Where a frozen router listened; when its queue is full its machine does not even answer who wants to connect."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=8 if accepts else 0))
        for _ in range(0 if accepts else 4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("accepts", [True, False])
def test_a_router_that_says_nothing_is_left(driver, routers, accepts):
    with silent(accepts=accepts) as address:
        client = driver.make([address, routers[0].address])
        while client.address != address:  # the first one is drawn
            driver.end()
            driver.__init__()
            client = driver.make([address, routers[0].address])
        began = time.monotonic()
        assert client.generate("m", "p").token_ids == IDS
        assert time.monotonic() - began < 12
        assert client.stats.failures[address] == 1


@pytest.mark.parametrize(
    ("one", "other"), [(Client, AsyncClient), (GenerationStream, AsyncGenerationStream)], ids=str
)
def test_both_kinds_offer_the_same(one, other):
    def offers(kind):
        public = {name for name in dir(kind) if not name.startswith("_")}
        return {"close" if name == "aclose" else name for name in public}

    assert offers(one) == offers(other)
    assert {"stats", "address"} <= offers(one) or {"target", "route"} <= offers(one)
