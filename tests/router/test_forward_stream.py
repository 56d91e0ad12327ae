"""Micro-batches on one stream to a head: shared, bounded, cancelled one by one, and never lost with it."""

import asyncio

import numpy as np
import pytest
from stagemesh.services.router.channels import Channels
from stagemesh.services.router.forward_stream import ForwardStream, NotSpokenError
from stagemesh.services.stage.forward_stream import _Local

from stagemesh.errors import DeadlineExceeded, Unavailable
from stagemesh.grpc_server import create_channel
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1 import stage_pb2

from .conftest import eventually
from .scripted_stage import ScriptedStage
from .test_core_infer import ask
from .test_trace import spans  # noqa: F401 (a fixture)

IDS = np.array([[1, 2, 3]])


@pytest.fixture(params=["local", "grpc"], autouse=True)
def doors(request, monkeypatch):
    """Everything here holds over Unix sockets, too, which the first requests of a stream do not take yet."""
    monkeypatch.setattr(ScriptedStage, "doors", request.param == "local")
    return request.param == "local"


async def infer(core, ids=IDS, timeout_s=None, **more):
    answer = await core.infer(ask(ids, **more), core.context({}, timeout_s))
    return to_numpy(answer.outputs[0])[:, 0].tolist()


@pytest.fixture
async def stage():
    async with ScriptedStage("hold") as stage:
        yield stage


@pytest.fixture
async def channels():
    channels = Channels(2**26)
    yield channels
    await channels.close()


def request(session, tokens=3):
    return stage_pb2.ForwardRequest(
        session=session,
        lengths=[tokens],
        outputs=["sentence_embedding"],
        inputs=[from_numpy("input_ids", np.full(tokens, session))],
    )


async def test_all_requests_share_one_stream(mesh):
    core = await mesh.start({"0a": "good"}, task="embed")
    answers = await asyncio.gather(*(infer(core, IDS * n) for n in range(1, 20)))
    assert answers == [[6.0 * n] for n in range(1, 20)]
    stage = mesh.stages["0a"]
    assert (stage.opened_streams, stage.unary) == (1, 0)
    assert core.loads.counts("0a") == (19, 0)


async def test_a_head_that_does_not_know_the_stream_is_called(mesh):
    core = await mesh.start({"0a": "no streams"}, task="embed")
    for n in range(1, 5):
        assert await infer(core, IDS * n) == [6.0 * n]
    stage = mesh.stages["0a"]
    assert stage.unary == 4
    assert core.loads.counts("0a") == (4, 0)
    assert "unary" in repr(core.channels.forward(stage.address))


async def test_large_micro_batches_make_calls_of_their_own(mesh):
    core = await mesh.start({"0a": "good"}, task="embed", spec={"hidden_size": 4, "context_length": 50_000})
    assert await infer(core, np.ones((1, 40_000), np.int64)) == [40_000.0]
    assert mesh.stages["0a"].unary == 1


async def test_a_broken_stream_fails_everything_on_it_and_all_of_it_is_retried(mesh):
    core = await mesh.start({"0a": "break the stream", "0b": "break the stream"}, task="embed")
    asked = [asyncio.create_task(infer(core, IDS * n)) for n in range(1, 13)]
    await eventually(lambda: sum(len(stage.forwarded) for stage in mesh.stages.values()) == 12)
    waiting = len(mesh.stages["0a"].forwarded)
    mesh.stages["0b"].mode = "good"
    mesh.stages["0a"].release.set()  # breaks under all of its requests
    await eventually(lambda: len(mesh.stages["0b"].forwarded) == 12)
    mesh.stages["0b"].release.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    # Those that were on 0b from the start broke later, and 0a had broken for them already.
    retried = [answer for answer in answers if isinstance(answer, list)]
    assert len(retried) >= waiting > 0
    assert repr(core.channels.forward(mesh.stages["0a"].address)).endswith("waiting=0>")


async def test_without_another_replica_it_is_unavailable_and_the_next_request_opens_a_new_stream(mesh):
    core = await mesh.start({"0a": "break the stream"}, task="embed")
    stage = mesh.stages["0a"]
    asked = [asyncio.create_task(infer(core, IDS * n)) for n in range(1, 6)]
    await eventually(lambda: len(stage.forwarded) == 5)
    stage.release.set()
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, Unavailable)
        assert "broke at replica 0a: the connection to the head broke" in outcome.message
    assert core.loads.counts("0a") == (5, 0)
    stage.mode = "good"
    assert await infer(core) == [6.0]
    assert stage.opened_streams == 2


async def test_a_stage_that_is_gone_is_unavailable(mesh):
    core = await mesh.start({"0a": "good"}, task="embed")
    assert await infer(core) == [6.0]
    await mesh.stages["0a"].door.stop(0)
    for _ in range(2):
        with pytest.raises(Unavailable, match="broke at replica 0a"):
            await infer(core)


async def test_leaving_cancels_the_session_on_the_stage_and_no_other(mesh):
    core = await mesh.start({"0a": "hold"}, task="embed")
    stage = mesh.stages["0a"]
    first, second = (asyncio.create_task(infer(core, IDS * n)) for n in (1, 2))
    await eventually(lambda: len(stage.forwarded) == 2)
    first.cancel()
    await eventually(lambda: stage.cancelled == 1)
    stage.release.set()
    assert await second == [12.0]
    assert (stage.cancelled, stage.opened_streams) == (1, 1)
    assert core.loads.counts("0a") == (2, 0)


async def test_the_deadline_ends_the_session_on_the_stage(mesh):
    core = await mesh.start({"0a": "hold"}, task="embed")
    with pytest.raises(DeadlineExceeded):
        await infer(core, timeout_s=0.2)
    await eventually(lambda: mesh.stages["0a"].cancelled == 1)
    mesh.stages["0a"].mode = "good"
    assert await infer(core) == [6.0]
    assert mesh.stages["0a"].opened_streams == 1


def stream_to(stage, **more):
    channel = create_channel(stage.address)
    make = channel.stream_stream(
        "/stagemesh.v1.StageService/ForwardStream",
        stage_pb2.ForwardRequest.SerializeToString,
        stage_pb2.ForwardReply.FromString,
    )
    return channel, ForwardStream(stage.address, make, **more)


async def test_closing_waits_for_answers_within_the_grace_and_fails_the_rest(stage):
    channel, stream = stream_to(stage)
    asked = asyncio.create_task(stream.forward(request(1), 10))
    await eventually(lambda: stage.forwarded)
    closing = asyncio.create_task(stream.close(grace_s=10))
    await asyncio.sleep(0)
    stage.release.set()
    assert (await asked).outputs
    await closing
    await channel.close()
    channel, stream = stream_to(stage)
    stage.release.clear()
    asked = asyncio.create_task(stream.forward(request(2), 10))
    await eventually(lambda: len(stage.forwarded) == 2)
    await stream.close()
    with pytest.raises(Unavailable):
        await asked
    await channel.close()
    assert not [
        task
        for task in asyncio.all_tasks()
        if task.get_name().startswith("forward-stream") and "router" in repr(task.get_coro())
    ]


async def test_a_channel_closed_below_the_stream_fails_what_waits(stage):
    channel, stream = stream_to(stage)
    asked = asyncio.create_task(stream.forward(request(1), 10))
    await eventually(lambda: stage.forwarded)
    await channel.close()
    with pytest.raises(Unavailable):
        await asked
    await stream.close()


async def test_an_idle_stream_does_not_hold_up_the_closing_of_its_channel(stage, channels):
    stage.mode = "good"
    await channels.forward(stage.address).forward(request(1), 10)
    (channel,) = channels._open.values()
    channels.sweep(set())
    assert repr(channels) == "Channels([])"
    await eventually(lambda: channel._channel.closed())


async def test_what_still_gets_in_while_the_stream_ends_is_told_to_go_elsewhere(stage, channels):
    stage.mode = "good"
    stream = channels.forward(stage.address)
    await stream.forward(request(1), 10)
    channels.sweep(set())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="not used any more"):
        await stream.forward(request(2), 10)


async def test_not_spoken_is_told_at_once_to_all_that_wait_and_asked_again_later(stage, monkeypatch):
    stage.mode = "no streams"
    channel, stream = stream_to(stage)
    asked = [stream.forward(request(n), 10) for n in range(1, 4)]
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in told} == {NotSpokenError}
    assert not stream.spoken
    monkeypatch.setattr(stream, "_ask_again_at", 0.0)
    stage.mode = "good"
    assert (await stream.forward(request(4), 10)).outputs
    await stream.close()
    await channel.close()


async def test_the_trace_goes_along_with_each_message(mesh, spans):  # noqa: F811
    core = await mesh.start({"0a": "good"}, task="embed")
    for _ in range(2):
        await infer(core)
    traces = [each.traceparent.split("-") for each in mesh.stages["0a"].forwarded]
    await asyncio.sleep(0)  # a request's span ends once its answer is out
    made = spans()
    call, outer = made["stagemesh.v1.StageService/Forward"], made["router.request"]
    assert traces[0][1] != traces[1][1], "each request has its own"
    assert "traceparent" not in mesh.stages["0a"].stream_metadata, "the stream belongs to none of them"
    assert traces[1][1] == format(outer.context.trace_id, "032x")
    assert call.attributes["rpc.grpc.status_code"] == 0


# ---- over a Unix socket ----


async def settled(stream):
    """One answer, and the time that it takes to agree on a socket."""
    await stream.forward(request(1), 10)
    await eventually(lambda: stream._connection._socket is not None)


async def test_messages_take_the_socket_once_both_ends_agreed(stage, doors):
    stage.mode = "good"
    channel, stream = stream_to(stage)
    await stream.forward(request(1), 10)
    if doors:
        await settled(stream)
        stream._connection._call.write = None  # nothing goes there any more
    answers = await asyncio.gather(*(stream.forward(request(n), 10) for n in range(2, 40)))
    assert [int(to_numpy(each.outputs[0])[0, 0]) for each in answers] == [3 * n for n in range(2, 40)]
    assert (stream._connection._socket is not None) == doors
    assert stage.opened_streams == 1
    await stream.close()
    await channel.close()


async def test_a_router_that_wants_no_sockets_gets_none(stage):
    stage.mode = "good"
    channel, stream = stream_to(stage, local_sockets=False)
    await stream.forward(request(1), 10)
    await asyncio.sleep(0.05)
    await stream.forward(request(2), 10)
    assert stream._connection._socket is None
    assert "stagemesh-network" not in stage.stream_metadata
    await stream.close()
    await channel.close()


async def test_what_is_left_is_cancelled_over_the_socket(stage, doors):
    if not doors:
        pytest.skip("it is about the socket")
    stage.mode = "good"
    channel, stream = stream_to(stage)
    await settled(stream)
    stage.mode = "hold"
    asked = [asyncio.create_task(stream.forward(request(n), 10)) for n in (2, 3)]
    await eventually(lambda: len(stage.forwarded) == 3)
    asked[0].cancel()
    await eventually(lambda: stage.cancelled == 1)
    stage.release.set()
    assert (await asked[1]).outputs
    await stream.close()
    await channel.close()


async def test_a_stage_that_is_gone_fails_what_it_held(stage, doors):
    if not doors:
        pytest.skip("it is about the socket")
    stage.mode = "good"
    channel, stream = stream_to(stage)
    await settled(stream)
    stage.mode = "hold"
    asked = asyncio.create_task(stream.forward(request(2), 30))
    await eventually(lambda: len(stage.forwarded) == 2)
    await stage.door.stop(0)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(asked, 5)
    await eventually(lambda: stage.cancelled == 1)
    await stream.close()
    await channel.close()


async def test_an_answer_that_cannot_be_read_ends_the_connection(stage, doors, monkeypatch):
    if not doors:
        pytest.skip("it is about the socket")
    monkeypatch.setattr(
        _Local, "_over", lambda _, why: None
    )  # the router does not wait for the stage to end it
    stage.mode = "good"
    channel, stream = stream_to(stage)
    await settled(stream)
    connection, stage.mode = stream._connection, "hold"
    asked = asyncio.create_task(stream.forward(request(2), 30))
    await eventually(lambda: len(stage.forwarded) == 2)
    connection._socket._hand(b"\xff\xff")
    with pytest.raises(Unavailable, match="the connection to the head broke"):
        await asyncio.wait_for(asked, 5)
    stage.mode = "good"
    assert (await stream.forward(request(3), 10)).outputs
    assert stage.opened_streams == 2
    await stream.close()
    await channel.close()
