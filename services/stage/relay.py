"""The receiving end of a relay: frames of one upstream replica, in order, with credits for more.

While it holds any of them it says so twice a second (`heartbeat.py`), to senders that listen for it.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from google.protobuf.message import DecodeError

from stagemesh.errors import InvalidArgument, StagemeshError, Unavailable
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.tensor import decode_frame
from stagemesh.v1.stage_pb2 import Feedback, Hello

from . import metrics
from .handshake import HEARTBEAT, PARCELS, Peer, agree, introduce
from .heartbeat import BEAT_S
from .local_frames import ReceivingSocket
from .parcels import Assembly
from .replica import Replica
from .shared_memory import ReceivingLane

log = logging.getLogger(__name__)

# Frames a sender may have under way: enough to hide the way back, few enough to bound memory.
WINDOW = 16
# Credits go back that many at once: a message for each would cost as much as the frame did. A sender that has none
# left then waits for a receiver that still holds half of a window, and so for nobody who is idle.
CREDIT_BATCH = WINDOW // 2
# Feedback messages that wait to be sent; errors are never dropped, so a full queue blocks the reader.
FEEDBACK_QUEUE = 1024

_ids = itertools.count(1)


class Upstream:
    """The sender of a stream, as the replica sees it: called with what it is to be told.

    Attributes:
        peer: who it is and what it speaks.
    """

    def __init__(self, peer: Peer, feedback: asyncio.Queue[Feedback | None]) -> None:
        self.peer = peer
        # What reads the stream, and why it no longer does.
        self.reader: asyncio.Task[None] | None = None
        self.ended: StagemeshError | None = None
        self._feedback = feedback

    def __repr__(self) -> str:
        return f"<Upstream {self.peer.replica_id} told={self._feedback.qsize()}>"

    def __call__(self, message: Feedback) -> None:
        """Tell it something, after what it was told before."""
        try:
            self._feedback.put_nowait(message)
        except asyncio.QueueFull:
            # The sender does not read: the stream is useless, and ending it fails its sessions loudly.
            log.error("relay.feedback_full from=%s", self.peer.replica_id)
            self.end(Unavailable("the stream's sender reads no feedback"))

    def end(self, error: StagemeshError) -> None:
        """End the stream with an error; its sender takes this replica for lost."""
        self.ended = error
        if self.reader is not None:
            self.reader.cancel()

    @property
    def told(self) -> bool:
        """Whether all that it was told is on its way."""
        return self._feedback.empty()


async def relay(
    requests: AsyncIterator[bytes],
    find: Callable[[str], Replica | None],
    caller: str = "",
    largest: int = MAX_MESSAGE_BYTES,
) -> AsyncGenerator[Feedback, None]:
    """Serve one Relay call.

    Args:
        requests: serialised frames; the first one carries `hello`.
        find: the loaded replica of an id.
        caller: where the sender's connection comes from, in gRPC's spelling.
        largest: bytes of a frame that comes in parts.

    Raises:
        InvalidArgument: a frame that cannot be read.
        Unavailable: the replica is not (or no more) loaded here.
        FailedPrecondition: the sender speaks none of this version's protocols.
    """
    hello = await _hello(requests)
    replica = find(hello.to_replica)
    if replica is None:
        raise Unavailable(f"replica {hello.to_replica[:80]!r} is not loaded on this node")
    peer = agree(hello, hello.from_replica)
    offered = replica.links.shared_memory_bytes and hello.HasField("shared")
    lane = ReceivingLane.accept(hello.shared) if offered else ReceivingLane(None)
    upstream = next(_ids)
    feedback: asyncio.Queue[Feedback | None] = asyncio.Queue(FEEDBACK_QUEUE)
    sender = Upstream(peer, feedback)
    replica.links.upstreams[upstream] = sender
    credits = _Credits(replica, upstream)

    incoming = _Incoming(lane, replica, upstream, credits, Assembly(largest))
    reading = _read(requests, incoming.parcel if peer.speaks(PARCELS) else incoming.frame, feedback)
    sender.reader = reader = asyncio.create_task(reading, name=f"relay-{hello.from_replica}")
    tasks: list[asyncio.Task[None]] = [reader]
    if peer.speaks(HEARTBEAT):
        tasks.append(asyncio.create_task(_beat(sender, credits), name=f"heartbeat-{hello.from_replica}"))
    local = ReceivingSocket(hello.network if replica.links.local_sockets else "", incoming.frame, sender.end)
    try:
        answering = introduce(
            Hello(
                to_replica=hello.from_replica,
                shared_accepted=lane.accepted,
                local=local.offer(caller),
            )
        )
        yield Feedback(hello=answering, credits=WINDOW)
        while (message := await feedback.get()) is not None:
            yield message
        if sender.ended is not None:
            raise sender.ended
        await reader
    finally:
        local.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        incoming.close()
        replica.recovery.upstream_lost(upstream)


async def _hello(requests: AsyncIterator[bytes]) -> Hello:
    try:
        first, _ = decode_frame(await anext(requests))
    except StopAsyncIteration:
        raise InvalidArgument("hello: the stream ended before it", field="hello") from None
    except DecodeError as error:
        metrics.BAD_FRAMES.inc()
        raise InvalidArgument("hello: the first message is not a frame", field="hello") from error
    if not first.HasField("hello") or not first.hello.to_replica:
        raise InvalidArgument("hello: the first frame must carry it", field="hello")
    return first.hello


class _Credits:
    """Frames of one stream: how many are held here, and the credits that go back when they are done with."""

    def __init__(self, replica: Replica, upstream: int) -> None:
        self._replica = replica
        self._upstream = upstream
        self._held = 0
        self._owed = 0

    def take(self) -> None:
        """A frame came in.

        Raises:
            InvalidArgument: the sender had no credit for it.
        """
        if self._held >= WINDOW:
            raise InvalidArgument(f"frame: sent without a credit, {WINDOW} are held already", field="frame")
        self._held += 1
        self._replica.held += 1

    def give(self) -> None:
        """A frame is done with: what it led to has left this process, or failed."""
        self._held -= 1
        self._replica.held -= 1
        self._owed += 1
        answer = self._replica.links.upstreams.get(self._upstream)
        if self._owed >= CREDIT_BATCH and answer is not None:
            answer(Feedback(credits=self._owed))
            self._owed = 0

    def beat(self) -> Feedback | None:
        """All credits that are owed, and the load; None when nothing is held or owed."""
        if not self._held and not self._owed:
            return None
        owed, self._owed = self._owed, 0
        return Feedback(credits=owed, load=self._replica.load())


async def _beat(sender: Upstream, credits: _Credits) -> None:
    """Say that this end lives, as long as the sender waits for anything."""
    while True:
        await asyncio.sleep(BEAT_S)
        if sender.told and (message := credits.beat()) is not None:
            sender(message)


async def _read(
    requests: AsyncIterator[bytes],
    take: Callable[[bytes], None],
    feedback: asyncio.Queue[Feedback | None],
) -> None:
    """Take frames in, in order."""
    try:
        async for data in requests:
            take(data)
            del data  # nothing of a frame is kept here while waiting for the next
    finally:
        try:
            feedback.put_nowait(None)
        except asyncio.QueueFull:
            pass  # the writer is still draining; it ends with the call


class _Incoming:
    """Frames of one stream, from its messages or from the socket beside it, to the replica."""

    def __init__(
        self, lane: ReceivingLane, replica: Replica, upstream: int, credits: _Credits, assembly: Assembly
    ) -> None:
        self._lane = lane
        self._replica = replica
        self._upstream = upstream
        self._credits = credits
        self._assembly = assembly

    def frame(self, data: bytes) -> None:
        """Take one frame in; it keeps its credit until it is done with.

        Raises:
            StagemeshError: it was not to be sent, cannot be read, or makes no sense.
        """
        self._credits.take()
        self._frame(data, 0, None)

    def parcel(self, data: bytes) -> None:
        """Take in what frames are whole with this message; a part of one is held, and said to be, like a whole one.

        Raises:
            StagemeshError: as `frame` does.
        """
        assembly = self._assembly
        counted = assembly.begun
        try:
            for found in assembly.frames(data):
                if not counted:
                    self._credits.take()
                counted = False
                self._frame(found.data, found.begin, found.end)
        except DecodeError as error:
            metrics.BAD_FRAMES.inc()
            raise InvalidArgument("frame: it cannot be read", field="frame") from error
        if assembly.begun and not counted:
            self._credits.take()

    def close(self) -> None:
        """Nothing more comes: a frame of which only parts did is not held any longer."""
        if self._assembly.begun:
            self._credits.give()

    def _frame(self, data: bytes | memoryview, begin: int, end: int | None) -> None:
        try:
            frame, tensor = self._lane.decode(data, begin, end)
            self._replica.on_frame(frame, tensor, self._upstream, self._credits.give)
        except DecodeError as error:
            metrics.BAD_FRAMES.inc()
            self._credits.give()
            raise InvalidArgument("frame: it cannot be read", field="frame") from error
        except StagemeshError:
            metrics.BAD_FRAMES.inc()
            self._credits.give()
            raise
