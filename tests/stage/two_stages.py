"""Two partitions behind real sockets in one process, and what a router or a neighbour says to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from stagemesh.services.stage.head import Head
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.link import RELAY_METHOD
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh.checkpoint import inspect
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import (
    Feedback,
    ForwardRequest,
    ForwardResponse,
    NodeStatus,
    OpenSession,
    RouteHop,
    SessionEvent,
)
from stagemesh.v1.tensor_pb2 import Tensor

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
            prompt_tokens=more.pop("prompt_tokens", len(prompt)),
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

    async def forward(self, session: int) -> list[int]:
        """A stateless pass of one row; the shape of its last hidden state."""
        request = ForwardRequest(
            session=session,
            model="m",
            route=self.hops,
            lengths=[1],
            inputs=[Tensor(name="input_ids", dtype="I64", shape=[1], data=bytes(8))],
            outputs=["last_hidden_state"],
        )
        call = self.channel.unary_unary(
            f"/{SERVICE}/Forward", ForwardRequest.SerializeToString, ForwardResponse.FromString
        )
        return list((await call(request, timeout=20)).outputs[0].shape)

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
async def route_of(folder: Path, kv_bytes: int = 10**8, chunk_tokens: int = 512) -> AsyncIterator[Route]:
    found = inspect(folder)
    replicas, servers, hops, heads = [], [], [], []
    for stage in range(2):
        model = load_partition(folder, found, task="generate", first=CUTS[stage], end=CUTS[stage + 1])
        replica = Replica(f"r{stage}", "m", stage, model, kv_bytes)
        head = Head(replica, 2, chunk_tokens) if stage == 0 else None
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
