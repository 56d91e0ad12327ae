"""Frames between replicas of one host: over a Unix socket, beside the gRPC stream that they would take otherwise.

A message on a gRPC stream costs several times what a small frame takes to compute. So where sender and receiver share
a host and nothing stands between them (`stagemesh/local_door.py`), all frames take the socket, and their payloads the
shared-memory lane as before. Everything else stays in the gRPC stream: hellos, credits, errors, heartbeats; and that
stream alone says whether the link lives. When it ends so does the socket, and the other way round.
"""

import asyncio
from collections.abc import Callable

from stagemesh.errors import InternalError, StagemeshError, Unavailable
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.local_door import door_for, enter
from stagemesh.message_socket import MessageSocket
from stagemesh.v1.stage_pb2 import Hello, LocalSocket

from . import metrics

_LINKS = {way: metrics.LINKS.labels(way) for way in ("local", "grpc")}


class SendingSocket:
    """The sender's end.

    Args:
        socket: where the frames go.
    """

    def __init__(self, socket: MessageSocket) -> None:
        self._socket = socket

    def __repr__(self) -> str:
        return f"<SendingSocket {self._socket!r}>"

    @classmethod
    async def agreed(cls, hello: Hello, on_over: Callable[[], None]) -> "SendingSocket | None":
        """What the receiver's hello offers, if that works within a second; else frames go in the stream.

        Args:
            hello: the receiver's.
            on_over: called once when the receiver closed it; its stream may say why a moment later.
        """
        connection = await enter(hello.local) if hello.HasField("local") else None
        _LINKS["grpc" if connection is None else "local"].inc()
        if connection is None:
            return None
        # Nothing comes this way: 0 bytes is the largest message.
        return cls(MessageSocket(connection, lambda _: None, lambda _: on_over(), largest=0))

    async def write(self, data: bytes) -> None:
        """Send one serialised frame; returns when the system has taken it, which is nearly always at once.

        Raises:
            ConnectionError: the receiver is gone.
        """
        if not self._socket.send(data):
            await self._socket.drained()

    def close(self) -> None:
        """No more frames."""
        self._socket.close()


class ReceivingSocket:
    """The receiver's end of one stream, if it comes to that.

    Args:
        network: of the sender, as its hello says it; empty when frames are to come in the stream.
        take: called with each serialised frame.
        end: ends the stream with an error.
    """

    def __init__(
        self, network: str, take: Callable[[bytes], None], end: Callable[[StagemeshError], None]
    ) -> None:
        self._door = door_for(network)
        self._take = take
        self._end = end
        self._socket: MessageSocket | None = None
        self._waits: asyncio.Task[None] | None = None
        if self._door is not None:
            self._waits = asyncio.create_task(self._wait(), name="local-frames")

    def __repr__(self) -> str:
        return f"<ReceivingSocket {self._door!r} {self._socket!r}>"

    def offer(self, caller: str) -> LocalSocket | None:
        """For this end's hello; `caller` is where the sender's connection comes from, in gRPC's spelling."""
        return self._door.offer(caller) if self._door is not None and caller else None

    async def _wait(self) -> None:
        assert self._door is not None
        try:
            connection = await self._door.admitted()
        except OSError:
            return  # the door is closed
        self._socket = MessageSocket(connection, self._taken, self._over, MAX_MESSAGE_BYTES)

    def _taken(self, data: bytes) -> None:
        try:
            self._take(data)
        except StagemeshError as error:
            self._failed(error)
        except Exception:
            self._failed(InternalError("a frame could not be handled"))
            raise

    def _failed(self, error: StagemeshError) -> None:
        self.close()
        self._end(error)

    def _over(self, why: str) -> None:
        """The sender is gone, or said what it must not. If it is gone its stream ends as well, and this changes nothing."""
        self._end(Unavailable(f"the socket of the stream ended: {why}"))

    def close(self) -> None:
        """Take no more frames."""
        if self._waits is not None:
            self._waits.cancel()
        if self._door is not None:
            self._door.close()
        if self._socket is not None:
            self._socket.close()
