"""Many micro-batches on one stream: answers in any order, errors and cancellations that stay with their session."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from stagemesh.services.stage.forward_stream import IDLE, forward_stream
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.errors import InvalidArgument, NotFound, ResourceExhausted
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1.stage_pb2 import Feedback, ForwardReply, ForwardRequest, ForwardResponse, Hello, ReplicaLoad
from stagemesh.v1.tensor_pb2 import Tensor
from tests.stage.two_stages import route_of, settled

pytestmark = pytest.mark.asyncio
METHOD = f"/{SERVICE}/ForwardStream"


@dataclass
class Node:
    """A server whose micro-batches end when their model's name is released; the name says how."""

    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    began: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    running: int = 0
    most: int = 0

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def forward(self, request: ForwardRequest) -> ForwardResponse:
        name = request.model
        self.began[name] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate(name).wait()
        except asyncio.CancelledError:
            self.cancelled[name] += 1
            raise
        finally:
            self.running -= 1
        if name == "wrong":
            raise InvalidArgument("lengths: there are none", field="lengths")
        if name == "absent":
            raise NotFound("x" * 5000)
        if name == "bug":
            raise RuntimeError("the secret of /some/path")
        size = {"large": 5000, "huge": 500_000}.get(name, 1)
        return ForwardResponse(outputs=[Tensor(name=name, data=bytes(size))])


@asynccontextmanager
async def serving(node: Node, **limits: int) -> AsyncIterator[grpc.aio.StreamStreamCall]:
    """A call to a server that runs `forward_stream` over `node`."""

    async def handle(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for reply in forward_stream(requests, node.forward, **limits):
            yield reply

    server = GrpcServer("127.0.0.1", 0)
    handlers = {"ForwardStream": grpc.stream_stream_rpc_method_handler(handle, None, None)}
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = await server.start([SERVICE])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream(METHOD, ForwardRequest.SerializeToString, ForwardReply.FromString)()
    await server.stop(0)


async def eventually(check: object) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)


async def test_answers_come_in_the_order_in_which_they_are_ready() -> None:
    node = Node()
    async with serving(node) as call:
        for session, name in enumerate("abc", start=1):
            await call.write(ForwardRequest(session=session, model=name))
        await eventually(lambda: node.running == 3)
        for session, name in ((3, "c"), (1, "a"), (2, "b")):
            node.gate(name).set()
            reply = await call.read()
            assert (reply.session, reply.response.outputs[0].name) == (session, name)


@pytest.mark.parametrize(
    ("name", "code", "field", "message"),
    [
        ("wrong", 3, "lengths", "lengths: there are none"),
        ("absent", 5, "", "x" * 1500),
        ("bug", 13, "", "internal error"),
        ("large", 8, "", "the answer takes 5025 bytes, more than the 4096 of one message"),
    ],
)
async def test_an_error_is_an_answer_and_the_others_go_on(
    name: str, code: int, field: str, message: str
) -> None:
    node = Node()
    async with serving(node, max_reply_bytes=4096) as call:
        await call.write(ForwardRequest(session=1, model="good"))
        await call.write(ForwardRequest(session=2, model=name))
        node.gate(name).set()
        reply = await call.read()
        assert (reply.session, reply.error.session, reply.HasField("response")) == (2, 2, False)
        assert (reply.error.code, reply.error.field, reply.error.message) == (code, field, message)
        node.gate("good").set()
        assert (await call.read()).response.outputs[0].name == "good"


async def test_an_error_says_when_to_try_again() -> None:
    async def full(request: ForwardRequest) -> ForwardResponse:
        raise ResourceExhausted("KV memory", retry_after_s=0.2504)

    async def requests() -> AsyncIterator[bytes]:
        yield ForwardRequest(session=1, model="m").SerializeToString()

    (reply,) = [ForwardReply.FromString(each) async for each in forward_stream(requests(), full)]
    assert (reply.error.code, reply.error.retry_after_ms) == (8, 251)


async def test_a_cancelled_session_stops_and_gets_no_answer() -> None:
    node = Node()
    async with serving(node) as call:
        for session, name in ((1, "a"), (2, "b")):
            await call.write(ForwardRequest(session=session, model=name))
        await eventually(lambda: node.running == 2)
        await call.write(ForwardRequest(session=1, cancel=True))
        await call.write(ForwardRequest(session=99, cancel=True))  # nobody's: ignored
        await eventually(lambda: node.cancelled["a"])
        assert node.running == 1
        node.gate("a").set()
        node.gate("b").set()
        await call.done_writing()
        assert [reply.session async for reply in call] == [2]


async def test_what_runs_is_cancelled_when_the_stream_breaks() -> None:
    node = Node()
    async with serving(node) as call:
        for session in range(1, 6):
            await call.write(ForwardRequest(session=session, model="a"))
        await eventually(lambda: node.running == 5)
        call.cancel()
        await eventually(lambda: node.running == 0)
        assert node.cancelled["a"] == 5


async def test_what_runs_is_answered_when_the_router_only_stops_sending() -> None:
    node = Node()
    async with serving(node) as call:
        for session in (1, 2):
            await call.write(ForwardRequest(session=session, model="a"))
        await call.done_writing()
        await eventually(lambda: node.running == 2)
        node.gate("a").set()
        assert sorted([reply.session async for reply in call]) == [1, 2]


async def test_more_than_the_bound_is_refused() -> None:
    node = Node()
    async with serving(node, max_sessions=4) as call:
        for session in range(1, 10):
            await call.write(ForwardRequest(session=session, model="a"))
        refused = [await call.read() for _ in range(5)]
        assert sorted(reply.session for reply in refused) == [5, 6, 7, 8, 9]
        assert {reply.error.code for reply in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
        assert node.most == 4
        node.gate("a").set()
        assert sorted([(await call.read()).session for _ in range(4)]) == [1, 2, 3, 4]
        await call.write(ForwardRequest(session=10, model="a"))
        assert (await call.read()).HasField("response"), "there is room again"


async def test_answers_that_nobody_reads_stop_the_reading_of_requests() -> None:
    node = Node()
    node.gate("huge").set()
    async with serving(node, max_sessions=2) as call:
        request = ForwardRequest(session=1, model="huge", inputs=[Tensor(data=bytes(100_000))])
        for sent in range(1000):
            request.session = sent
            write = asyncio.ensure_future(call.write(request))
            done, _ = await asyncio.wait([write], timeout=2)
            if done:
                write.result()
            print(sent, node.began, len(done))
            if not done:
                break
            write.result()
        else:
            pytest.fail("answers of 500 MB were kept")
        assert node.began["huge"] < sent
        write.cancel()
        await asyncio.gather(write, return_exceptions=True)


async def test_a_session_that_runs_is_not_begun_again() -> None:
    node = Node()
    async with serving(node) as call:
        await call.write(ForwardRequest(session=1, model="a"))
        await call.write(ForwardRequest(session=1, model="a"))
        reply = await call.read()
        assert reply.error.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
        assert node.began["a"] == 1
        node.gate("a").set()
        assert (await call.read()).HasField("response")


async def test_a_task_is_used_again_and_enough_of_them_are_kept() -> None:
    tasks: list[asyncio.Task[None] | None] = []
    held: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def forward(request: ForwardRequest) -> ForwardResponse:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0.01 if request.model == "slow" else 0)
        return ForwardResponse()

    async def requests() -> AsyncIterator[bytes]:
        while (data := await held.get()) is not None:
            yield data

    replies = forward_stream(requests(), forward)
    for session in range(1, 6):
        held.put_nowait(ForwardRequest(session=session).SerializeToString())
        await anext(replies)
    assert len(set(tasks)) == 1
    for session in range(10, 10 + 2 * IDLE):
        held.put_nowait(ForwardRequest(session=session, model="slow").SerializeToString())
    for _ in range(2 * IDLE):
        await anext(replies)
    await eventually(lambda: sum(not task.done() for task in set(tasks) if task) == IDLE)
    held.put_nowait(None)
    assert [reply async for reply in replies] == []
    assert all(task.done() for task in tasks if task)


async def test_nothing_of_an_answered_one_is_kept() -> None:
    seen: list[ForwardRequest] = []

    async def forward(request: ForwardRequest) -> ForwardResponse:
        seen.append(request)
        return ForwardResponse()

    async def requests() -> AsyncIterator[bytes]:
        yield ForwardRequest(session=1).SerializeToString()
        await eventually(lambda: replies)
        counted.append(sys.getrefcount(seen[0]))

    replies: list[bytes] = []
    counted: list[int] = []
    async for reply in forward_stream(requests(), forward):
        replies.append(reply)
    assert counted == [2], "by `seen`, and by the question"


async def test_one_cancelled_before_it_began_leaves_no_trace() -> None:
    began: list[int] = []

    async def forward(request: ForwardRequest) -> ForwardResponse:
        began.append(request.session)
        await asyncio.sleep(0)
        return ForwardResponse()

    async def requests() -> AsyncIterator[bytes]:
        yield ForwardRequest(session=1).SerializeToString()
        await eventually(lambda: replied)
        # In one turn of the loop: the task that answered the first is given the second, and does not come to it.
        for cancel in (False, True):
            yield ForwardRequest(session=2, cancel=cancel).SerializeToString()
        await asyncio.sleep(0.02)
        yield ForwardRequest(session=2).SerializeToString()

    replied: list[ForwardReply] = []
    async for reply in forward_stream(requests(), forward):
        replied.append(ForwardReply.FromString(reply))
    assert [(reply.session, reply.HasField("response")) for reply in replied] == [(1, True), (2, True)]
    assert began == [1, 2]


async def test_garbage_ends_the_stream_with_a_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    async with serving(node) as call:
        call._request_serializer = None  # raw bytes
        await call.write(ForwardRequest(session=1, model="a").SerializeToString())
        await eventually(lambda: node.running)
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert isinstance(from_rpc_error(caught.value), InvalidArgument)
        await eventually(lambda: node.cancelled["a"])
    assert "never retrieved" not in caplog.text


# ---- on real partitions ----


def batch(session: int, hops: list, ids: np.ndarray, **more: object) -> ForwardRequest:
    inputs = [from_numpy("input_ids", ids)]
    return ForwardRequest(session=session, model="m", route=hops, lengths=[len(ids)], inputs=inputs, **more)


async def test_the_same_answers_as_calls_of_their_own(llama: Path) -> None:
    async with route_of(llama) as route:
        unary = route.channel.unary_unary(
            f"/{SERVICE}/Forward", ForwardRequest.SerializeToString, ForwardResponse.FromString
        )
        call = route.channel.stream_stream(
            METHOD, ForwardRequest.SerializeToString, ForwardReply.FromString
        )()
        asked = {
            session: batch(session, route.hops, np.arange(session + 2, dtype=np.int64))
            for session in range(1, 9)
        }
        expected = {session: await unary(request, timeout=20) for session, request in asked.items()}
        for request in asked.values():
            await call.write(request)
        for _ in asked:
            reply = await call.read()
            assert reply.response.timings
            assert isinstance(reply.response.loads[0], ReplicaLoad)
            np.testing.assert_allclose(
                to_numpy(reply.response.outputs[0]),
                to_numpy(expected.pop(reply.session).outputs[0]),
                rtol=1e-4,
                atol=1e-5,
            )
        assert not expected
        await settled(route)


async def test_an_unknown_replica_is_an_error_of_its_session(llama: Path) -> None:
    async with route_of(llama) as route:
        call = route.channel.stream_stream(
            METHOD, ForwardRequest.SerializeToString, ForwardReply.FromString
        )()
        await call.write(ForwardRequest(session=5, model="m", route=route.hops[1:]))
        reply = await call.read()
        assert (reply.session, reply.error.code) == (5, grpc.StatusCode.UNAVAILABLE.value[0])


async def test_a_cancelled_session_is_freed_on_the_head(llama: Path) -> None:
    """Stage 1 takes the frame and never says anything."""

    async def relay(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[Feedback]:
        yield Feedback(hello=Hello(protocol=1), credits=16)
        await asyncio.sleep(60)

    silent = GrpcServer("127.0.0.1", 0)
    handlers = {"Relay": grpc.stream_stream_rpc_method_handler(relay, None, Feedback.SerializeToString)}
    silent.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = await silent.start([SERVICE])
    async with route_of(llama) as route:
        route.hops[1].address = f"127.0.0.1:{port}"
        call = route.channel.stream_stream(
            METHOD, ForwardRequest.SerializeToString, ForwardReply.FromString
        )()
        for session in (1, 2):
            await call.write(batch(session, route.hops, np.arange(4, dtype=np.int64)))
        await eventually(lambda: len(route.replicas[0].sessions) == 2)
        await call.write(ForwardRequest(session=1, cancel=True))
        await eventually(lambda: list(route.replicas[0].sessions) == [2])
        call.cancel()
        await settled(route)
    await silent.stop(0)
