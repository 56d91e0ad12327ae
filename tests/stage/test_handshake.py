"""Two versions side by side: what both speak is agreed on, what one does not know passes through it unharmed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from stagemesh.services.stage import handshake
from stagemesh.services.stage.handshake import FEATURES, HEARTBEAT, PROTOCOL, agree, introduce
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.link import RELAY_METHOD
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.relay import WINDOW
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh.checkpoint import inspect
from stagemesh.errors import FailedPrecondition, Unavailable
from stagemesh.grpc_server import GrpcServer
from stagemesh.tensor import TensorView, decode_frame, encode_frame
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, NodeStatus, RouteHop
from tests.stage.future_frames import FUTURE
from tests.stage.scripted_stage import ScriptedStage, eventually, linked, scripted

GREETING = Feedback(hello=introduce(Hello()), credits=WINDOW)
WIDTH = 128


@pytest.mark.parametrize(
    ("theirs", "agreed"),
    [
        (Hello(), 1),
        (Hello(protocol=1), 1),
        (Hello(protocol=7), PROTOCOL),
        (Hello(protocol=7, min_protocol=PROTOCOL), PROTOCOL),
        (Hello(protocol=1, min_protocol=9), 1),  # nonsense is read as what it can only mean
    ],
)
def test_both_speak_the_highest_version_that_they_share(theirs: Hello, agreed: int) -> None:
    assert agree(theirs, "r").protocol == agreed


def test_what_cannot_be_spoken_is_refused_naming_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FailedPrecondition, match="1 here, 2 to 5 there"):
        agree(Hello(protocol=5, min_protocol=2), "r")
    monkeypatch.setattr(handshake, "PROTOCOL", 6)
    monkeypatch.setattr(handshake, "MIN_PROTOCOL", 4)
    assert agree(Hello(protocol=5, min_protocol=2), "r").protocol == 5
    with pytest.raises(FailedPrecondition, match="4 to 6 here, 3 there"):
        agree(Hello(protocol=3, min_protocol=3), "r")
    with pytest.raises(FailedPrecondition, match="4 to 6 here, 1 there"):
        agree(Hello(), "r")


def test_only_features_that_both_have_are_asked_for() -> None:
    assert agree(introduce(Hello()), "r").features == frozenset(FEATURES)
    peer = agree(Hello(features=[HEARTBEAT, "time-travel"]), "r")
    assert peer.speaks(HEARTBEAT)
    assert not peer.speaks("time-travel")
    assert not agree(Hello(), "r").speaks(HEARTBEAT)


# ---- a stage in the middle, over real sockets ----


class Middle:
    """Layers 2 and 3 of a model in a server of their own, between two scripted neighbours."""

    def __init__(self, replica: Replica, hop: RouteHop, next_: ScriptedStage, next_hop: RouteHop) -> None:
        self.replica, self.hop, self.next, self.next_hop = replica, hop, next_, next_hop
        self._channel = grpc.aio.insecure_channel(hop.address)

    def route(self) -> list[RouteHop]:
        return [RouteHop(stage=0, replica_id="r0", address="127.0.0.1:1"), self.hop, self.next_hop]

    async def call(self, hello: bytes) -> tuple[Any, Feedback]:
        """A stream to it, and what it answered."""
        call = self._channel.stream_stream(RELAY_METHOD, None, None)(timeout=30)
        await call.write(hello)
        return call, FUTURE["Feedback"].FromString(await call.read())

    async def close(self) -> None:
        await self._channel.close()


@asynccontextmanager
async def middle(llama: Path, greeting: Feedback) -> AsyncIterator[Middle]:
    async with scripted(2, "r2", greeting) as (next_, next_hop):
        model = load_partition(llama, inspect(llama), task="generate", first=2, end=4)
        replica = Replica("r1", "m", 1, model, 10**8)
        server = GrpcServer("127.0.0.1", 0)
        hosted = Hosted(Assignment(replica_id="r1", model="m"), ReplicaRecord(), replica)
        servicer = StageServicer({"r1": hosted}.get, NodeStatus)
        server.server.add_generic_rpc_handlers((servicer.handler(),))
        port = await server.start([SERVICE])
        hop = RouteHop(stage=1, replica_id="r1", address=f"127.0.0.1:{port}")
        one = Middle(replica, hop, next_, next_hop)
        try:
            yield one
        finally:
            await one.close()
            await replica.close()
            await server.stop(0)


def future_step(route: list[RouteHop], session: int, position: int = 0, tokens: int = 1) -> Any:
    """A step of a session, with news in every message of it; the first one opens the session."""
    step = FUTURE["Step"](
        session=session, epoch=2, kind=2, position=position, tokens=tokens, novelty=f"step {session}"
    )
    if not position:
        step.open.max_total_tokens = 32
        step.open.novelty = f"open {session}"
        step.open.sampling.novelty = "sampling"
        for hop in route:
            step.open.route.add(
                stage=hop.stage, replica_id=hop.replica_id, address=hop.address, novelty="hop"
            )
    return step


def rows(count: int) -> TensorView:
    return TensorView("F32", (count, WIDTH), memoryview(torch.ones(count, WIDTH).numpy()).cast("B"))


def future_frame(steps: list[Any], **more: Any) -> bytes:
    frame = FUTURE["Frame"](steps=steps, novelty="frame", **more)
    frame.hops.add(stage=0, replica_id="r0", novelty="record")
    return encode_frame(frame, rows(sum(step.tokens for step in steps)))


def read(data: bytes) -> Any:
    """A frame as the later version reads it, without its tensor."""
    frame, tensor = decode_frame(data)
    assert tensor is not None
    return FUTURE["Frame"].FromString(frame.SerializeToString())


@pytest.mark.asyncio
async def test_a_stage_passes_on_what_only_later_versions_know(llama: Path) -> None:
    hello = FUTURE["Frame"]()
    hello.hello.protocol, hello.hello.from_replica, hello.hello.to_replica = 9, "r0", "r1"
    hello.hello.features.extend([HEARTBEAT, "time-travel"])
    hello.hello.novelty = "hello"
    async with middle(llama, GREETING) as stage:
        call, answer = await stage.call(hello.SerializeToString())
        assert answer.hello.protocol == PROTOCOL
        assert list(answer.hello.features) == list(FEATURES)
        route = stage.route()

        # Whole: one session, and two that stay together.
        await call.write(future_frame([future_step(route, 1)]))
        await call.write(future_frame([future_step(route, 2), future_step(route, 3, tokens=2)]))
        await eventually(lambda: len(stage.next.got) == 3)
        for data, sessions in zip(stage.next.got[1:], ([1], [2, 3]), strict=True):
            frame = read(data)
            assert frame.novelty == "frame"
            assert [step.novelty for step in frame.steps] == [f"step {each}" for each in sessions]
            assert [step.open.novelty for step in frame.steps] == [f"open {each}" for each in sessions]
            assert {step.open.sampling.novelty for step in frame.steps} == {"sampling"}
            assert {hop.novelty for step in frame.steps for hop in step.open.route} == {"hop"}
            assert [(hop.stage, hop.novelty) for hop in frame.hops] == [(0, "record"), (1, "")]

        # Cut: of two sessions one cannot run here. What is its neighbour's goes on.
        unknown = future_step(route, 99, position=5)
        await call.write(future_frame([unknown, future_step(route, 4)]))
        await eventually(lambda: len(stage.next.got) == 4)
        frame = read(stage.next.got[3])
        assert [(step.session, step.novelty) for step in frame.steps] == [(4, "step 4")]
        assert frame.steps[0].open.novelty == "open 4"
        assert frame.hops[0].novelty == "record"

        # What comes back passes as well.
        error = FUTURE["SessionError"](session=1, epoch=2, code=14, message="gone", stage=2, novelty="error")
        await stage.next.say.put(FUTURE["Feedback"](errors=[error], novelty="feedback").SerializeToString())
        while True:
            said = FUTURE["Feedback"].FromString(await call.read())
            if any(each.session == 1 for each in said.errors):
                break
        assert [each.novelty for each in said.errors if each.session == 1] == ["error"]
        call.cancel()


@pytest.mark.asyncio
async def test_the_first_version_is_still_spoken_in_both_directions(llama: Path) -> None:
    """Hellos without anything that came later, and no feature asked of either neighbour."""
    old = Feedback(hello=Hello(protocol=1, to_replica="r1"), credits=WINDOW)
    async with middle(llama, old) as stage:
        call, answer = await stage.call(
            Frame(hello=Hello(protocol=1, from_replica="r0", to_replica="r1")).SerializeToString()
        )
        assert answer.credits == WINDOW
        await call.write(future_frame([future_step(stage.route(), 1)]))
        await eventually(lambda: len(stage.next.got) == 2)
        (link,) = stage.replica.links._links.values()
        assert link.peer is not None
        assert (link.peer.protocol, link.peer.features) == (1, frozenset())
        (upstream,) = stage.replica.links.upstreams.values()
        assert not upstream.peer.speaks(HEARTBEAT)  # type: ignore[attr-defined]
        call.cancel()


@pytest.mark.asyncio
async def test_a_sender_without_a_common_version_is_refused(llama: Path) -> None:
    async with middle(llama, GREETING) as stage:
        hello = Frame(hello=Hello(protocol=9, min_protocol=8, from_replica="r0", to_replica="r1"))
        with pytest.raises(grpc.aio.AioRpcError, match="1 here, 8 to 9 there") as refused:
            await stage.call(hello.SerializeToString())
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert not stage.replica.links.upstreams


@pytest.mark.asyncio
async def test_a_receiver_without_a_common_version_is_not_sent_to() -> None:
    later = Feedback(hello=Hello(protocol=9, min_protocol=8), credits=WINDOW)
    async with scripted(1, "r1", later) as (stage, hop), linked(hop) as one:
        sent: list[bool] = []
        one.link.post(Frame(), sent=lambda: sent.append(True))
        await eventually(lambda: one.broke)
        assert "1 here, 8 to 9 there" in one.broke[0].message
        assert sent == [True]
        with pytest.raises(Unavailable):
            await one.link.met()
        assert not stage.frames


@pytest.mark.asyncio
async def test_who_waits_for_a_link_that_is_closed_is_told() -> None:
    async with scripted(1, "r1", None) as (_, hop), linked(hop) as one:
        waits = asyncio.create_task(one.link.met())
        await asyncio.sleep(0)
        await one.link.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waits, 5)


@pytest.mark.asyncio
async def test_whoever_needs_to_know_can_wait_for_the_answer() -> None:
    async with scripted(1, "r1", GREETING) as (_, hop), linked(hop) as one:
        assert not one.link.speaks(HEARTBEAT)
        assert (await one.link.met()).speaks(HEARTBEAT)
        assert one.link.speaks(HEARTBEAT)
