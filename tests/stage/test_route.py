"""Two partitions behind real sockets: what travels between them, and what happens when it is wrong."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from stagemesh.services.stage.canary import probe
from stagemesh.services.stage.head import Head
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.link import RELAY_METHOD
from stagemesh.services.stage.partition.model import load_partition
from stagemesh.services.stage.relay import WINDOW
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh.checkpoint import inspect
from stagemesh.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer
from stagemesh.tensor import TensorView, encode_frame
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import (
    Feedback,
    ForwardRequest,
    ForwardResponse,
    Frame,
    Hello,
    NodeStatus,
    OpenSession,
    RouteHop,
    Sampling,
    SessionEvent,
    Step,
)
from stagemesh.v1.tensor_pb2 import Tensor

pytestmark = pytest.mark.asyncio
CUTS = [0, 4, 8]


@dataclass
class Route:
    replicas: list[Replica]
    servers: list[GrpcServer]
    hops: list[RouteHop]
    channel: grpc.aio.Channel

    async def generate(self, prompt: list[int], new: int, **more: object) -> list[int]:
        request = OpenSession(
            session=more.pop("session", 1),
            model="m",
            route=self.hops,
            token_ids=prompt,
            prompt_tokens=len(prompt),
            max_tokens=new,
            **more,
        )
        call = self.channel.unary_stream(
            f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
        )(request, timeout=20)
        try:
            return [token.id async for event in call for token in event.tokens]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def relay(self, to: int, frames: list[bytes]) -> list[Feedback]:
        """Send raw messages to one replica's Relay; its feedback until it has nothing more to say."""
        call = self.channel_to(to).stream_stream(RELAY_METHOD, None, Feedback.FromString)(timeout=10)
        for frame in frames:
            await call.write(frame)
        await call.done_writing()
        try:
            return [feedback async for feedback in call]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def channel_to(self, stage: int) -> grpc.aio.Channel:
        self._channels = getattr(self, "_channels", [])
        self._channels.append(grpc.aio.insecure_channel(self.hops[stage].address))
        return self._channels[-1]


@asynccontextmanager
async def route_of(folder: Path, kv_bytes: int = 10**8) -> AsyncIterator[Route]:
    found = inspect(folder)
    replicas, servers, hops, heads = [], [], [], []
    for stage in range(2):
        model = load_partition(folder, found, task="generate", first=CUTS[stage], end=CUTS[stage + 1])
        replica = Replica(f"r{stage}", "m", stage, model, kv_bytes)
        head = Head(replica, 2) if stage == 0 else None
        hosted = Hosted(Assignment(replica_id=f"r{stage}", model="m"), ReplicaRecord(), replica, head)
        server = GrpcServer("127.0.0.1", 0)
        servicer = StageServicer({f"r{stage}": hosted}.get, NodeStatus)
        server.server.add_generic_rpc_handlers((servicer.handler(),))
        port = await server.start([SERVICE])
        replicas.append(replica)
        servers.append(server)
        heads.append(head)
        hops.append(RouteHop(stage=stage, replica_id=f"r{stage}", address=f"127.0.0.1:{port}"))
    channel = grpc.aio.insecure_channel(hops[0].address)
    route = Route(replicas, servers, hops, channel)
    try:
        yield route
    finally:
        await channel.close()
        for used in getattr(route, "_channels", []):
            await used.close()
        for head in heads:
            if head is not None:
                await head.close()
        for replica in replicas:
            await replica.close()
        for server in servers:
            await server.stop(0)


async def settled(route: Route) -> None:
    """Wait until no replica holds anything of any session."""
    async with asyncio.timeout(3):
        while any(r.sessions or r.pool.used_bytes for r in route.replicas):
            await asyncio.sleep(0.01)


async def test_a_session_is_freed_on_every_stage_when_it_ends(llama: Path) -> None:
    async with route_of(llama) as route:
        first = await route.generate([5, 6, 7], 6)
        assert len(first) == 6
        await settled(route)
        assert await route.generate([5, 6, 7], 6) == first


async def test_a_session_is_freed_on_every_stage_when_its_caller_leaves(llama: Path) -> None:
    async with route_of(llama) as route:
        task = asyncio.create_task(route.generate([5, 6, 7], 400))
        async with asyncio.timeout(5):
            while not route.replicas[1].sessions:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled(route)


async def test_a_later_stage_without_kv_memory_refuses_and_the_head_says_so(llama: Path) -> None:
    async with route_of(llama) as route:
        route.replicas[1].pool.budget_bytes = 10
        with pytest.raises(ResourceExhausted, match="KV memory"):
            await route.generate([5, 6, 7], 6)
        await settled(route)
        route.replicas[1].pool.budget_bytes = 10**8
        assert len(await route.generate([5, 6, 7], 6)) == 6


async def test_a_lost_stage_gives_unavailable_and_names_the_stage(llama: Path) -> None:
    async with route_of(llama) as route:
        task = asyncio.create_task(route.generate([5, 6, 7], 400))
        async with asyncio.timeout(5):
            while not route.replicas[1].sessions:
                await asyncio.sleep(0.01)
        await route.servers[1].stop(0)
        with pytest.raises(Unavailable, match="stage 1"):
            await task
        async with asyncio.timeout(3):
            while route.replicas[0].sessions:
                await asyncio.sleep(0.01)


async def test_a_deadline_that_passes_ends_the_session_everywhere(llama: Path) -> None:
    async with route_of(llama) as route:
        with pytest.raises(DeadlineExceeded):
            await route.generate([5, 6, 7], 480, deadline_unix_ms=int(time.time() * 1000) + 100)
        await settled(route)


@pytest.mark.parametrize(
    ("more", "prompt", "new"),
    [({}, [], 3), ({}, [5], 0), ({}, [512], 3), ({"stop_token_ids": []}, [5], 2**20)],
    ids=["no-prompt", "nothing-to-do", "beyond-vocabulary", "too-long"],
)
async def test_the_head_refuses_what_cannot_run(llama: Path, more: dict, prompt: list[int], new: int) -> None:
    async with route_of(llama) as route:
        with pytest.raises(InvalidArgument):
            await route.generate(prompt, new, **more)
        assert len(await route.generate([5], 2)) == 2


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"\xff\xff\xff"],
        [Frame().SerializeToString()],
        [Frame(hello=Hello(to_replica="r1")).SerializeToString(), b"garbage"],
    ],
    ids=["nothing", "not-a-frame", "no-hello", "garbage-later"],
)
async def test_a_stream_that_is_not_frames_is_refused_and_the_stage_lives_on(
    llama: Path, frames: list[bytes]
) -> None:
    async with route_of(llama) as route:
        with pytest.raises(InvalidArgument):
            await route.relay(1, frames)
        assert len(await route.generate([5], 2)) == 2


async def test_a_relay_to_an_unknown_replica_is_unavailable(llama: Path) -> None:
    async with route_of(llama) as route:
        with pytest.raises(Unavailable):
            await route.relay(1, [Frame(hello=Hello(to_replica="r9")).SerializeToString()])


async def test_steps_of_an_unknown_session_are_reported_and_others_go_on(llama: Path) -> None:
    async with route_of(llama) as route:
        hidden = torch.zeros(2, 128)
        view = TensorView("F32", (2, 128), memoryview(hidden.numpy()).cast("B"))
        frames = [
            Frame(hello=Hello(to_replica="r1")).SerializeToString(),
            encode_frame(Frame(steps=[Step(session=77, tokens=2, position=4)]), view),
        ]
        feedback = await route.relay(1, frames)
        assert feedback[0].credits == WINDOW
        assert [error.session for one in feedback for error in one.errors] == [77]
        assert sum(one.credits for one in feedback) == WINDOW + 1


async def test_a_tensor_that_does_not_fit_its_steps_ends_the_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        view = TensorView("F32", (1, 4), memoryview(bytes(16)))
        frames = [
            Frame(hello=Hello(to_replica="r1")).SerializeToString(),
            encode_frame(Frame(steps=[Step(session=77, tokens=1)]), view),
        ]
        with pytest.raises(StagemeshError):
            await route.relay(1, frames)
        assert len(await route.generate([5], 2)) == 2


async def test_an_output_that_the_model_lacks_is_an_error_of_its_name(llama: Path) -> None:
    async with route_of(llama) as route:
        ids = Tensor(name="input_ids", dtype="I64", shape=[3], data=bytes(24))
        request = ForwardRequest(session=3, model="m", route=route.hops, lengths=[2, 1], inputs=[ids])
        call = route.channel.unary_unary(
            f"/{SERVICE}/Forward", ForwardRequest.SerializeToString, ForwardResponse.FromString
        )
        answer = await call(request, timeout=10)
        assert [list(output.shape) for output in answer.outputs] == [[3, 512]]
        request.outputs.append("sentence_embedding")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=10)
        assert from_rpc_error(caught.value).field == "outputs"
        await settled(route)


async def test_seeded_samples_do_not_depend_on_who_else_is_there(llama: Path) -> None:
    async with route_of(llama) as route:
        sampling = Sampling(temperature=1, seed=9)
        alone = await route.generate([5, 6], 10, sampling=sampling)
        together = await asyncio.gather(
            *(
                route.generate([5, 6] if s == 4 else [s], 10, sampling=sampling, session=s)
                for s in range(1, 9)
            )
        )
        assert together[3] == alone


async def test_the_canary_refuses_weights_that_are_not_finite(llama: Path) -> None:
    model = load_partition(llama, inspect(llama), task="generate", first=0, end=4)
    replica = Replica("r", "m", 0, model, 10**6)
    assert await probe(replica) > 0
    assert replica.pool.used_bytes == 0
    next(iter(model._skeleton.model.parameters())).fill_(float("nan"))
    with pytest.raises(StagemeshError, match="not finite"):
        await probe(replica)
    await replica.close()
