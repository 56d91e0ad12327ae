"""The sending end of a relay: one long-lived stream to one replica, for all sessions.

Frames wait in a bounded outbox and go out within the credits that the receiver grants. When the stream breaks
the link is over: its owner is told once, and a new session makes a new link.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc

from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import create_channel
from stagemesh.tensor import TensorView, encode_frame
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, RouteHop

log = logging.getLogger(__name__)

PROTOCOL = 1
# Frames in the outbox before a sender waits.
OUTBOX = 64
RELAY_METHOD = "/stagemesh.v1.StageService/Relay"
CONNECT_TIMEOUT_S = 5.0


class Link:
    """A stream to `hop`, owned by the replica `sender`.

    Args:
        sender: id of the replica that sends.
        hop: where to.
        on_feedback: called with each feedback, on the loop.
        on_broken: called once when the stream is over without `close`.
    """

    def __init__(
        self,
        sender: str,
        hop: RouteHop,
        on_feedback: Callable[["Link", Feedback], None],
        on_broken: Callable[["Link", StagemeshError], Awaitable[None]],
    ) -> None:
        self.hop = hop
        self.broken = False
        self._sender = sender
        self._on_feedback = on_feedback
        self._on_broken = on_broken
        self._outbox: asyncio.Queue[tuple[Frame, TensorView | None]] = asyncio.Queue(OUTBOX)
        self._credits = 0
        self._credit_given = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"link-{sender}-{hop.replica_id}")

    def __repr__(self) -> str:
        state = "broken" if self.broken else "up"
        return f"<Link {self._sender}->{self.hop.replica_id} {state} credits={self._credits} queued={self._outbox.qsize()}>"

    async def send(self, frame: Frame, tensor: TensorView | None = None) -> None:
        """Queue a frame; waits while the outbox is full.

        Raises:
            Unavailable: the link is broken.
        """
        if not self.broken:
            await self._outbox.put((frame, tensor))
        if self.broken:
            raise Unavailable(f"the link to stage {self.hop.stage} is broken")

    async def close(self) -> None:
        """End the stream without telling the owner."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        error: StagemeshError = Unavailable(f"stage {self.hop.stage} closed the link")
        channel = create_channel(self.hop.address)
        try:
            await asyncio.wait_for(_connected(channel, self.hop.stage), CONNECT_TIMEOUT_S)
            call = channel.stream_stream(RELAY_METHOD, None, Feedback.FromString)()
            hello = Hello(protocol=PROTOCOL, from_replica=self._sender, to_replica=self.hop.replica_id)
            await call.write(Frame(hello=hello).SerializeToString())
            writer = asyncio.create_task(self._write(call))
            try:
                async for feedback in call:
                    self._credits += feedback.credits
                    if self._credits > 0:
                        self._credit_given.set()
                    self._on_feedback(self, feedback)
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        except TimeoutError:
            error = Unavailable(f"stage {self.hop.stage} could not be reached in {CONNECT_TIMEOUT_S:g} s")
        except Unavailable as refused:
            error = refused
        except grpc.aio.AioRpcError as rpc_error:
            cause = from_rpc_error(rpc_error)
            error = Unavailable(f"stage {self.hop.stage} was lost: {cause.message}"[:300])
        finally:
            await channel.close()
        self.broken = True
        while not self._outbox.empty():  # frees senders that wait for room
            self._outbox.get_nowait()
        log.warning("relay.failed to=%s stage=%d: %s", self.hop.replica_id, self.hop.stage, error.message)
        await self._on_broken(self, error)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            frame, tensor = await self._outbox.get()
            while self._credits <= 0:
                self._credit_given.clear()
                await self._credit_given.wait()
            self._credits -= 1
            try:
                await call.write(encode_frame(frame, tensor))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader learns why


async def _connected(channel: grpc.aio.Channel, stage: int) -> None:
    """Return once there is a connection; a peer that is gone is not waited for.

    Raises:
        Unavailable: the connection was refused.
    """
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise Unavailable(f"stage {stage} cannot be reached")
        await channel.wait_for_state_change(state)
