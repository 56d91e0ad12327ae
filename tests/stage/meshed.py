"""Partitions of one model behind real sockets in one process, several replicas a stage, and a router's part played by hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from stagemesh.services.stage.head import Head
from stagemesh.services.stage.hosted import Hosted
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE, StageServicer

from stagemesh.checkpoint import inspect
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer
from stagemesh.v1.registry_pb2 import Assignment, ReplicaRecord
from stagemesh.v1.stage_pb2 import (
    LostReplica,
    NodeStatus,
    OpenSession,
    RerouteRequest,
    RerouteResponse,
    RouteHop,
    SessionEvent,
)


@dataclass
class Member:
    """A replica with its server."""

    replica: Replica
    head: Head | None
    server: GrpcServer
    hop: RouteHop
    dead: bool = False

    async def die(self) -> None:
        """Cut every connection at once, as a killed process does; nothing is said to anybody."""
        self.dead = True
        for link in list(self.replica.links._links.values()):
            await link.close()
        await self.server.stop(0)


@dataclass
class Mesh:
    members: dict[str, Member]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def hops(self, *names: str) -> list[RouteHop]:
        return [self.members[name].hop for name in names]

    def channel(self, name: str) -> grpc.aio.Channel:
        self.channels.append(grpc.aio.insecure_channel(self.members[name].hop.address))
        return self.channels[-1]

    async def reroute(self, session: int, epoch: int, route: list[str], stage: int = 1) -> None:
        call = self.channel(route[0]).unary_unary(
            f"/{SERVICE}/Reroute", RerouteRequest.SerializeToString, RerouteResponse.FromString
        )
        request = RerouteRequest(session=session, epoch=epoch, route=self.hops(*route), stage=stage)
        try:
            await call(request, timeout=10)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


@dataclass
class Run:
    """One generation along a route, with what is done when replicas are lost."""

    mesh: Mesh
    route: list[str]
    prompt: list[int]
    new: int
    session: int = 1
    spares: dict[int, list[str]] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    lost: list[LostReplica] = field(default_factory=list)
    epoch: int = 0
    held: bool = False

    async def go(self, at: dict[int, Callable[[], Awaitable[object]]] | None = None) -> list[int]:
        """Its tokens; `at[n]` runs once `n` tokens came."""
        at = dict(at or {})
        request = OpenSession(
            session=self.session,
            epoch=self.epoch,
            model="m",
            route=self.mesh.hops(*self.route),
            token_ids=[*self.prompt, *self.tokens],
            prompt_tokens=len(self.prompt),
            max_tokens=self.new,
            reroutable=True,
            held=self.held,
            **self.settings,  # type: ignore[arg-type]
        )
        call = self.mesh.channel(self.route[0]).unary_stream(
            f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
        )(request, timeout=60)
        try:
            async for event in call:
                self.tokens.extend(token.id for token in event.tokens)
                for count in [count for count in at if len(self.tokens) >= count]:
                    await at.pop(count)()
                if event.HasField("lost"):
                    await self._replace(event.lost)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()
        return self.tokens

    async def _replace(self, lost: LostReplica) -> None:
        self.lost.append(lost)
        self.epoch += 1
        self.route[lost.stage] = self.spares[lost.stage].pop(0)
        await self.mesh.reroute(self.session, self.epoch, self.route, lost.stage)


@asynccontextmanager
async def mesh_of(folder: Path, cuts: list[int], replicas: str = "ab", **more: int) -> AsyncIterator[Mesh]:
    """Replicas `0a`, `0b`, `1a`, ... of a model cut at `cuts`."""
    found = inspect(folder)
    members: dict[str, Member] = {}
    stages = len(cuts) - 1
    for stage in range(stages):
        model = load_partition(folder, found, task="generate", first=cuts[stage], end=cuts[stage + 1])
        for letter in replicas:
            name = f"{stage}{letter}"
            replica = Replica(
                name, "m", stage, model, more.get("kv_bytes", 10**8), more.get("journal_bytes", 2**26)
            )
            head = Head(replica, stages, more.get("chunk_tokens", 512)) if stage == 0 else None
            hosted = Hosted(Assignment(replica_id=name, model="m"), ReplicaRecord(), replica, head)
            server = GrpcServer("127.0.0.1", 0)
            servicer = StageServicer({name: hosted}.get, NodeStatus)
            server.server.add_generic_rpc_handlers((servicer.handler(),))
            port = await server.start([SERVICE])
            hop = RouteHop(stage=stage, replica_id=name, address=f"127.0.0.1:{port}")
            members[name] = Member(replica, head, server, hop)
    mesh = Mesh(members)
    try:
        yield mesh
    finally:
        for channel in mesh.channels:
            await channel.close()
        for member in members.values():
            if member.head is not None:
                await member.head.close()
        for member in members.values():
            await member.replica.close()
        for member in members.values():
            if not member.dead:
                await member.server.stop(0)


async def freed(mesh: Mesh, *names: str) -> None:
    """Wait until these replicas (all of them when none is named) hold nothing of any session."""
    members = [mesh.members[name] for name in names or mesh.members]
    async with asyncio.timeout(10):
        while any(m.replica.sessions or m.replica.pool.used_bytes for m in members):
            await asyncio.sleep(0.01)
    assert not any(m.replica.recovery.journals.sessions for m in members)
