"""A replica that holds frames says that it lives; one that says nothing is given up, but not by one that slept itself."""

import asyncio
import random
import time
from pathlib import Path

import pytest
from stagemesh.services.stage import link as link_module
from stagemesh.services.stage import relay as relay_module
from stagemesh.services.stage.handshake import HEARTBEAT
from stagemesh.services.stage.heartbeat import SILENT_BEATS, Listener
from stagemesh.services.stage.link import RELAY_METHOD
from stagemesh.services.stage.relay import WINDOW
from stagemesh.services.stage.unreachable import Unreachable

from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, ReplicaLoad, SessionClose
from tests.stage.scripted_stage import eventually, linked, scripted
from tests.stage.test_flow import busy, stateless
from tests.stage.two_stages import route_of

HELLO = Hello(protocol=1, from_replica="r0", to_replica="r1", features=[HEARTBEAT])
LISTENS = Frame(hello=HELLO).SerializeToString()
GREETING = Feedback(hello=Hello(protocol=1, features=[HEARTBEAT]), credits=WINDOW)
SOME_FRAME = Frame(closes=[SessionClose(session=1)])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats ten times as often, and no memory of what other tests could not reach."""
    monkeypatch.setattr(link_module, "BEAT_S", 0.05)
    monkeypatch.setattr(relay_module, "BEAT_S", 0.05)
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())


def test_silence_counts_only_while_something_is_owed() -> None:
    listener = Listener()
    assert not any(listener.tick(owes=False) for _ in range(100))
    assert [listener.tick(owes=True) for _ in range(SILENT_BEATS)] == [False] * (SILENT_BEATS - 1) + [True]


def test_whoever_is_heard_in_time_is_never_given_up() -> None:
    rng = random.Random(3)
    listener = Listener()
    for _ in range(200):
        assert not any(listener.tick(owes=True) for _ in range(rng.randrange(SILENT_BEATS)))
        listener.heard()


def test_silence_is_forgotten_when_nothing_is_owed() -> None:
    listener = Listener()
    for _ in range(20):
        assert not any(listener.tick(owes=True) for _ in range(SILENT_BEATS - 1))
        listener.tick(owes=False)


@pytest.mark.asyncio
async def test_a_receiver_that_computes_for_long_says_that_it_lives(llama: Path, fast: None) -> None:
    async with route_of(llama) as route:
        stage = route.replicas[1]
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(LISTENS)
        first = await call.read()
        assert first.credits == WINDOW
        assert HEARTBEAT in first.hello.features
        with busy(stage):
            for number in range(3):
                await call.write(stateless(route, 100 + number))
            await eventually(lambda: stage.held == 3)
            for _ in range(3):
                beat = await asyncio.wait_for(call.read(), 20)
                assert not beat.credits
                assert beat.load.replica_id == "r1"
            assert beat.load.sessions == 3
            assert beat.load.queue_depth == 4
        # Every credit comes home, fewer than make up a batch too, and then there is nothing more to say.
        back = 0
        while back < 3:
            back += (await asyncio.wait_for(call.read(), 20)).credits
        assert back == 3
        silence = asyncio.create_task(call.read())
        await asyncio.sleep(0.3)
        assert not silence.done()
        silence.cancel()
        call.cancel()


@pytest.mark.asyncio
async def test_a_sender_that_does_not_listen_is_told_nothing(llama: Path, fast: None) -> None:
    async with route_of(llama) as route:
        stage = route.replicas[1]
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(Frame(hello=Hello(protocol=1, to_replica="r1")).SerializeToString())
        await call.read()
        with busy(stage):
            await call.write(stateless(route, 100))
            await eventually(lambda: stage.held == 1)
            said = asyncio.create_task(call.read())
            await asyncio.sleep(0.3)
            assert not said.done()
            said.cancel()
        call.cancel()


@pytest.mark.asyncio
async def test_a_receiver_that_holds_a_frame_and_says_nothing_is_given_up(fast: None) -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as one:
        await eventually(lambda: one.link.peer)
        # A link without frames under way waits for nothing.
        await asyncio.sleep(0.05 * SILENT_BEATS * 2)
        assert not one.broke
        one.link.post(SOME_FRAME)
        await eventually(lambda: stage.frames)
        for _ in range(SILENT_BEATS):
            await stage.say.put(Feedback(load=ReplicaLoad(replica_id="r1", sessions=7)).SerializeToString())
            await asyncio.sleep(0.08)
        assert not one.broke
        assert one.link.load is not None
        assert one.link.load.sessions == 7
        await eventually(lambda: one.broke)
        assert "stage 1 has said nothing" in one.broke[0].message
        assert len(one.broke) == 1
        # The next one does not wait to find out the same.
        async with linked(hop) as again:
            await eventually(lambda: again.broke)
            assert "could not be reached a moment ago" in again.broke[0].message
        assert stage.streams == 1


@pytest.mark.asyncio
async def test_a_receiver_with_nothing_left_to_do_may_be_silent(fast: None) -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as one:
        one.link.post(SOME_FRAME)
        await eventually(lambda: stage.frames)
        await stage.say.put(Feedback(credits=1).SerializeToString())
        await asyncio.sleep(0.05 * SILENT_BEATS * 3)
        assert not one.broke


@pytest.mark.asyncio
async def test_a_receiver_of_an_older_version_may_be_silent(fast: None) -> None:
    greeting = Feedback(hello=Hello(protocol=1), credits=WINDOW)
    async with scripted(1, "r1", greeting) as (stage, hop), linked(hop) as one:
        one.link.post(SOME_FRAME)
        await eventually(lambda: stage.frames)
        await asyncio.sleep(0.05 * SILENT_BEATS * 3)
        assert not one.broke
        assert not one.link.speaks(HEARTBEAT)


@pytest.mark.asyncio
async def test_a_receiver_that_does_not_answer_the_hello_is_given_up(fast: None) -> None:
    async with scripted(1, "r1", None) as (stage, hop), linked(hop) as one:
        sent: list[bool] = []
        one.link.post(SOME_FRAME, sent=lambda: sent.append(True))
        await eventually(lambda: one.broke)
        assert "has said nothing" in one.broke[0].message
        assert sent == [True]
        assert not stage.frames


@pytest.mark.asyncio
async def test_a_sender_that_stood_still_itself_gives_nobody_up(fast: None) -> None:
    """What it did not hear while it slept is no silence of the other end."""
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as one:
        one.link.post(SOME_FRAME)
        await eventually(lambda: stage.frames)
        for _ in range(4):
            time.sleep(0.05 * SILENT_BEATS)
            await stage.say.put(Feedback(load=ReplicaLoad()).SerializeToString())
            await eventually(stage.say.empty)
            await asyncio.sleep(0.02)
        assert not one.broke
