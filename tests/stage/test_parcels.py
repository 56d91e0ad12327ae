"""Frames that share a message, and large ones in parts: what comes out is what went in, and nonsense is refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.stage import link as link_module
from stagemesh.services.stage import relay as relay_module
from stagemesh.services.stage.handshake import HEARTBEAT, PARCELS, introduce
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.link import OUTBOX, RELAY_METHOD
from stagemesh.services.stage.parcels import (
    JOINED_BYTES,
    PART_BYTES,
    WHOLE_BYTES,
    Assembly,
    joined,
    parts,
)
from stagemesh.services.stage.relay import WINDOW
from stagemesh.services.stage.servicer import StageServicer
from stagemesh.services.stage.unreachable import Unreachable

from stagemesh.errors import InvalidArgument, Unavailable
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.tensor import TensorView, decode_frame, encode_frame, frame_pieces
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import Feedback, Frame, FramePart, Hello, NodeStatus
from tests.stage.scripted_stage import ScriptedStage, Watched, eventually, linked, scripted
from tests.stage.test_flow import busy, opening
from tests.stage.two_stages import route_of, settled

GREETING = Feedback(hello=introduce(Hello()), credits=WINDOW)

pieces_of_a_frame = st.lists(st.binary(max_size=40), max_size=4).map(
    lambda bodies: (Frame(sent_unix_us=7).SerializeToString(), *bodies)
)


def numbered(number: int, nbytes: int = 8) -> tuple[Frame, TensorView]:
    """A frame that can be told from others, with a payload that can."""
    payload = np.random.default_rng(number).integers(0, 255, nbytes, np.uint8)
    return Frame(sent_unix_us=number), TensorView("U8", (nbytes,), memoryview(payload))


def found(messages: list[bytes], largest: int = MAX_MESSAGE_BYTES) -> list[bytes]:
    assembly = Assembly(largest)
    return [
        bytes(each.data[each.begin : each.end]) for message in messages for each in assembly.frames(message)
    ]


@given(st.lists(pieces_of_a_frame, min_size=1, max_size=5))
def test_frames_that_share_a_message_come_out_in_order(frames: list[tuple[bytes, ...]]) -> None:
    assert found([joined(frames)]) == [b"".join(pieces) for pieces in frames]


@given(pieces_of_a_frame, st.integers(1, 50))
def test_parts_make_up_the_frame_again(pieces: tuple[bytes, ...], size: int) -> None:
    whole = b"".join(pieces)
    messages = list(parts(pieces, size))
    assert len(messages) == -(-len(whole) // size)
    assert found(messages) == [whole]
    for last in range(len(messages)):
        assert found(messages[:last]) == []


@given(pieces_of_a_frame, st.lists(pieces_of_a_frame, min_size=2, max_size=3))
def test_the_generated_class_reads_the_same(
    pieces: tuple[bytes, ...], frames: list[tuple[bytes, ...]]
) -> None:
    assert list(Frame.FromString(joined(frames)).frames) == [b"".join(each) for each in frames]
    read = [Frame.FromString(message).part for message in parts(pieces, 7)]
    whole = b"".join(pieces)
    assert b"".join(part.data for part in read) == whole
    assert [part.total for part in read] == [len(whole)] + [0] * (len(read) - 1)
    assert found([Frame(part=part).SerializeToString() for part in read]) == [whole]
    assert found([Frame(frames=[b"".join(each) for each in frames]).SerializeToString()]) == [
        b"".join(each) for each in frames
    ]


@given(st.binary(max_size=60), pieces_of_a_frame)
def test_any_bytes_are_read_or_refused(noise: bytes, pieces: tuple[bytes, ...]) -> None:
    for data in (noise, joined([pieces, pieces])[:-1] + noise, next(parts(pieces, 3)) + noise):
        try:
            found([data])
        except (DecodeError, InvalidArgument):
            pass


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([Frame(part=FramePart(total=101, data=b"x"))], "frame.part.total"),
        ([Frame(part=FramePart(data=b"x"))], "frame.part.total"),
        ([Frame(part=FramePart(total=2, data=b"xyz"))], "frame.part.data"),
        ([Frame(part=FramePart(total=2))], "frame.part.data"),
        ([Frame(part=FramePart(total=2, data=b"x"))] * 2, "frame.part.total"),
        ([Frame(part=FramePart(total=2, data=b"x")), Frame(sent_unix_us=1)], "frame.part"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(messages: list[Frame], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        found([message.SerializeToString() for message in messages], largest=100)
    assert refused.value.field == field


def test_bytes_are_counted_whatever_the_payload_is_a_view_of() -> None:
    payload = memoryview(np.arange(300, dtype=np.float32))
    pieces = frame_pieces(Frame(sent_unix_us=1), TensorView("F32", (300,), payload))
    whole = b"".join(pieces)
    assert found(list(parts(pieces, 100))) == [whole]
    assert found([joined([pieces, pieces])]) == [whole, whole]


def test_a_tensor_of_an_assembled_frame_is_what_it_was() -> None:
    frame, view = numbered(3, 5 * PART_BYTES)
    pieces = frame_pieces(frame, view)
    assembly = Assembly(MAX_MESSAGE_BYTES)
    (whole,) = [each for message in parts(pieces) for each in assembly.frames(message)]
    assert decode_frame(whole.data, None, whole.begin, whole.end) == decode_frame(encode_frame(frame, view))


# ---- over real sockets ----


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_unreachable", Unreachable())


async def sent_at_once(
    stage: ScriptedStage, watched: Watched, frames: list[tuple[Frame, TensorView]]
) -> list[bytes]:
    """The messages that frames posted in one turn of the loop came in."""
    await watched.link.met()
    await eventually(lambda: watched.told)
    out: list[int] = []
    for frame, view in frames:
        watched.link.post(frame, view, lambda: out.append(1))
    await eventually(lambda: len(out) == len(frames))
    await eventually(lambda: len(stage.frames) >= len(frames))
    return stage.messages[1:]


@pytest.mark.asyncio
async def test_frames_that_wait_share_a_message() -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as watched:
        frames = [numbered(number) for number in range(10)]
        messages = await sent_at_once(stage, watched, frames)
        assert found(messages) == [encode_frame(*each) for each in frames]
        assert len(messages) <= 3  # the first one, and what came while that was written


@pytest.mark.asyncio
async def test_what_shares_a_message_is_bounded_and_has_its_credits() -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as watched:
        frames = [numbered(number, JOINED_BYTES // 2 - 100) for number in range(WINDOW)]
        extra = numbered(WINDOW)
        messages = await sent_at_once(stage, watched, frames)
        assert max(map(len, messages)) <= JOINED_BYTES
        watched.link.post(*extra)
        await asyncio.sleep(0.1)
        assert stage.got[1:] == [encode_frame(*each) for each in frames]
        await stage.say.put(Feedback(credits=1).SerializeToString())
        await eventually(lambda: stage.got[-1] == encode_frame(*extra))


@pytest.mark.asyncio
async def test_a_large_frame_goes_in_parts_in_its_turn() -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as watched:
        frames = [
            numbered(1),
            numbered(2, 3 * PART_BYTES),
            numbered(3),
            numbered(4, WHOLE_BYTES + 1),
            numbered(5),
        ]
        messages = await sent_at_once(stage, watched, frames)
        assert found(messages) == [encode_frame(*each) for each in frames]
        assert max(map(len, messages)) < PART_BYTES + 100
        assert not watched.broke


@pytest.mark.asyncio
async def test_an_end_that_does_not_know_parcels_gets_frames() -> None:
    before = Feedback(hello=Hello(protocol=1, features=[HEARTBEAT]), credits=WINDOW)
    async with scripted(1, "r1", before) as (stage, hop), linked(hop) as watched:
        frames = [numbered(number) for number in range(5)] + [numbered(9, WHOLE_BYTES + 1)]
        assert await sent_at_once(stage, watched, frames) == [encode_frame(*each) for each in frames]


@pytest.mark.asyncio
async def test_a_link_that_breaks_lets_go_of_all_that_it_took() -> None:
    async with scripted(1, "r1", GREETING) as (played, hop), linked(hop) as watched:
        await watched.link.met()
        await eventually(lambda: watched.told)
        played.reads.clear()
        out: list[int] = []
        for number in range(OUTBOX):
            watched.link.post(*numbered(number, 8 * PART_BYTES), lambda: out.append(1))
        await eventually(lambda: watched.link._ahead)
        watched.link._give_up(Unavailable("it is over"))
        await eventually(lambda: len(out) == OUTBOX)


@pytest.mark.asyncio
async def test_a_stage_takes_both_and_counts_each_frame_once(llama: Path) -> None:
    async with route_of(llama) as route:
        hello = Frame(hello=introduce(Hello(to_replica="r1"))).SerializeToString()
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(hello)
        assert PARCELS in (await call.read()).hello.features
        several = [frame_pieces(*opening(route, 100 + number)) for number in range(5)]
        await call.write(joined(several))
        for part in parts(frame_pieces(*opening(route, 200)), 100):
            await call.write(part)
        back = 0
        while back < 6:
            back += (await asyncio.wait_for(call.read(), 20)).credits
        assert back == 6
        assert route.replicas[1].held == 0
        call.cancel()
        await settled(route)


@pytest.mark.asyncio
async def test_whoever_holds_a_part_of_a_frame_says_that_it_lives(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "BEAT_S", 0.05)
    async with route_of(llama) as route:
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(Frame(hello=introduce(Hello(to_replica="r1"))).SerializeToString())
        await call.read()
        first, *rest = parts(frame_pieces(*opening(route, 7)), 300)
        await call.write(first)
        for _ in range(2):
            beat = await asyncio.wait_for(call.read(), 20)
            assert beat.HasField("load")
            assert not beat.credits
        for part in rest:
            await call.write(part)
        while not beat.credits:
            beat = await asyncio.wait_for(call.read(), 20)
        assert route.replicas[1].held == 0
        call.cancel()
        await settled(route)


@pytest.mark.asyncio
async def test_a_node_puts_together_no_more_than_its_largest_message(llama: Path) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield Frame(hello=introduce(Hello(to_replica="r1"))).SerializeToString()
        yield Frame(part=FramePart(total=1001, data=b"x")).SerializeToString()

    async with route_of(llama) as route:
        hosted = Hosted(Assignment(replica_id="r1", model="m"), ReplicaRecord(), route.replicas[1])
        servicer = StageServicer({"r1": hosted}.get, NodeStatus, max_message_bytes=1000)
        context: Any = SimpleNamespace(peer=lambda: "")
        answers = servicer.relay(requests(), context)
        assert (await anext(answers)).credits == WINDOW
        with pytest.raises(InvalidArgument) as refused:
            await anext(answers)
        assert refused.value.field == "frame.part.total"


@pytest.mark.asyncio
async def test_a_part_of_a_frame_is_held_no_longer_than_its_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(Frame(hello=introduce(Hello(to_replica="r1"))).SerializeToString())
        await call.read()
        await call.write(next(parts(frame_pieces(*opening(route, 7)), 300)))
        await eventually(lambda: route.replicas[1].held == 1)
        call.cancel()
        await eventually(lambda: route.replicas[1].held == 0)


@pytest.mark.asyncio
async def test_what_is_ready_goes_before_what_is_posted_when_a_write_ends() -> None:
    async with scripted(1, "r1", GREETING) as (stage, hop), linked(hop) as watched:
        await watched.link.met()
        await eventually(lambda: watched.told)
        last = numbered(3)
        watched.link.post(*numbered(1, PART_BYTES), lambda: watched.link.post(*last))
        watched.link.post(*numbered(2))
        await eventually(lambda: len(stage.frames) == 3)
        assert [frame.sent_unix_us for frame in stage.frames] == [1, 2, 3]


@pytest.mark.asyncio
async def test_a_message_without_credits_for_all_of_its_frames_ends_the_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        hello = Frame(hello=introduce(Hello(to_replica="r1"))).SerializeToString()
        many = joined([frame_pieces(*opening(route, 100 + number)) for number in range(WINDOW + 1)])
        with busy(route.replicas[1]), pytest.raises(InvalidArgument, match="without a credit"):
            await route.relay(1, [hello, many])
        await eventually(lambda: route.replicas[1].held == 0)
        assert len(await route.generate([5], 2)) == 2
