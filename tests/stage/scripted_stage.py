"""The other end of a link, played by a script over a real socket: what it gets, it keeps as bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from stagemesh.services.stage.link import Link
from stagemesh.services.stage.parcels import Assembly
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.errors import StagemeshError
from stagemesh.grpc_server import MAX_MESSAGE_BYTES, channel_options
from stagemesh.v1.stage_pb2 import Feedback, Frame, RouteHop


class ScriptedStage:
    """Serves Relay: answers the hello with `greeting` (None: never), says what is put into `say`, and reads while `reads`."""

    def __init__(self, greeting: Feedback | None) -> None:
        self.greeting = greeting
        self.messages: list[bytes] = []
        self.say: asyncio.Queue[bytes] = asyncio.Queue()
        self.streams = 0
        self.reads = asyncio.Event()
        self.reads.set()

    @property
    def got(self) -> list[bytes]:
        """The serialised frames in what came, the hello first."""
        assembly = Assembly(MAX_MESSAGE_BYTES)
        return [
            bytes(each.data[each.begin : each.end])
            for message in self.messages
            for each in assembly.frames(message)
        ]

    @property
    def frames(self) -> list[Frame]:
        """What came after the hello."""
        return [Frame.FromString(data) for data in self.got[1:]]

    async def relay(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        self.streams += 1
        self.messages.append(await anext(requests))

        async def read() -> None:
            async for data in requests:
                self.messages.append(data)
                await self.reads.wait()

        reader = asyncio.create_task(read())
        try:
            if self.greeting is not None:
                yield self.greeting.SerializeToString()
            while True:
                yield await self.say.get()
        finally:
            reader.cancel()


@asynccontextmanager
async def scripted(
    stage: int, replica_id: str, greeting: Feedback | None
) -> AsyncIterator[tuple[ScriptedStage, RouteHop]]:
    """A scripted replica, and where it is."""
    played = ScriptedStage(greeting)
    server = grpc.aio.server(options=channel_options())
    handler = grpc.stream_stream_rpc_method_handler(played.relay, None, None)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Relay": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield played, RouteHop(stage=stage, replica_id=replica_id, address=f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


class Watched:
    """A link, what it was told, and why it broke."""

    def __init__(self, hop: RouteHop) -> None:
        self.told: list[Feedback] = []
        self.broke: list[StagemeshError] = []
        self.link = Link(
            "r0",
            hop,
            lambda _, feedback: self.told.append(feedback),
            lambda _, error: self.broke.append(error),
        )


@asynccontextmanager
async def linked(hop: RouteHop) -> AsyncIterator[Watched]:
    """A link to `hop`."""
    watched = Watched(hop)
    try:
        yield watched
    finally:
        await watched.link.close()


async def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
