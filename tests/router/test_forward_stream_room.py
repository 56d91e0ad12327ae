"""Places on a router's stream to a head: who waits for one, who is given one, and what becomes of it."""

import asyncio

import pytest
from stagemesh.services.router.forward_stream import _Connection

from stagemesh.errors import DeadlineExceeded
from stagemesh.v1 import stage_pb2

from .conftest import eventually
from .test_forward_stream import doors, request, stage, stream_to  # noqa: F401 (two of them fixtures)


async def test_no_more_than_the_bound_is_in_flight(stage):  # noqa: F811
    channel, stream = stream_to(stage, in_flight=2)
    asked = [asyncio.create_task(stream.forward(request(n), 10)) for n in range(1, 6)]
    await eventually(lambda: len(stage.forwarded) == 2)
    with pytest.raises(DeadlineExceeded):
        await stream.forward(request(6), 0.2)
    assert [each.session for each in stage.forwarded] == [1, 2]
    asked[3].cancel()  # it waits for room
    stage.release.set()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, stage_pb2.ForwardResponse) for each in done] == [True, True, True, False, True]
    assert [each.session for each in stage.forwarded] == [1, 2, 3, 5]
    assert not stream._queue, "nobody who left is remembered"
    await stream.close()
    await channel.close()


async def test_a_place_given_to_one_who_leaves_in_that_moment_goes_on_to_the_next(stage, monkeypatch):  # noqa: F811
    channel, stream = stream_to(stage, in_flight=1)
    stage.release.set()
    hand_on = stream._next

    def handed_on():
        hand_on()
        second.cancel()  # it has just been given the place

    monkeypatch.setattr(stream, "_next", handed_on)
    first, second, third = (asyncio.create_task(stream.forward(request(n), 10)) for n in (1, 2, 3))
    done = await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 5)
    assert [isinstance(each, stage_pb2.ForwardResponse) for each in done] == [True, False, True]
    assert (await asyncio.wait_for(stream.forward(request(4), 10), 5)).outputs, "the place is free again"
    assert stream._running == 0
    assert not stream._queue
    await stream.close()
    await channel.close()


async def test_one_who_is_closed_while_it_waits_gives_nothing_back(stage):  # noqa: F811
    channel, stream = stream_to(stage, in_flight=1)
    first = asyncio.create_task(stream.forward(request(1), 10))
    await eventually(lambda: stage.forwarded)
    second = asyncio.create_task(stream.forward(request(2), 10))
    await eventually(lambda: stream._queue)
    before = list(stream._queue)
    waits = stream.forward(request(3), 10)
    waits.send(None)
    assert len(stream._queue) == 2
    waits.close()
    assert (stream._running, list(stream._queue)) == (1, before), "the other one waits as before"
    stage.release.set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    await stream.close()
    await channel.close()


async def test_the_wait_for_room_counts_against_the_deadline(stage, monkeypatch):  # noqa: F811
    channel, stream = stream_to(stage, in_flight=1)
    left, exchange = [], _Connection.exchange

    async def noted(self, request, timeout_s, when_sent):
        left.append(timeout_s)
        return await exchange(self, request, timeout_s, when_sent)

    monkeypatch.setattr(_Connection, "exchange", noted)
    first = asyncio.create_task(stream.forward(request(1), 10))
    await eventually(lambda: stage.forwarded)
    second = asyncio.create_task(stream.forward(request(2), 10))
    await asyncio.sleep(0.3)
    first.cancel()
    stage.release.set()
    assert (await second).outputs
    assert left[0] == 10
    assert left[1] < 9.8
    await stream.close()
    await channel.close()
