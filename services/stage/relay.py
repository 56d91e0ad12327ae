"""The receiving end of a relay: frames of one upstream replica, in order, with credits for more."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError

from stagemesh.errors import InvalidArgument, StagemeshError, Unavailable
from stagemesh.tensor import decode_frame
from stagemesh.v1.stage_pb2 import Feedback, Hello

from . import metrics
from .link import PROTOCOL
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


async def relay(
    requests: AsyncIterator[bytes], find: Callable[[str], Replica | None]
) -> AsyncIterator[Feedback]:
    """Serve one Relay call.

    Args:
        requests: serialised frames; the first one carries `hello`.
        find: the loaded replica of an id.

    Raises:
        InvalidArgument: a frame that cannot be read.
        Unavailable: the replica is not (or no more) loaded here.
    """
    hello = await _hello(requests)
    replica = find(hello.to_replica)
    if replica is None:
        raise Unavailable(f"replica {hello.to_replica[:80]!r} is not loaded on this node")
    offered = replica.shared_memory_bytes and hello.HasField("shared")
    lane = ReceivingLane.accept(hello.shared) if offered else ReceivingLane(None)
    upstream = next(_ids)
    feedback: asyncio.Queue[Feedback | None] = asyncio.Queue(FEEDBACK_QUEUE)

    def answer(message: Feedback) -> None:
        try:
            feedback.put_nowait(message)
        except asyncio.QueueFull:
            # The sender does not read: the stream is useless, and ending it fails its sessions loudly.
            log.error("relay.feedback_full from=%s", hello.from_replica)
            reader.cancel()

    replica.upstreams[upstream] = answer
    reader = asyncio.create_task(
        _read(requests, lane, replica, upstream, feedback), name=f"relay-{hello.from_replica}"
    )
    try:
        answering = Hello(protocol=PROTOCOL, to_replica=hello.from_replica, shared_accepted=lane.accepted)
        yield Feedback(hello=answering, credits=WINDOW)
        while (message := await feedback.get()) is not None:
            yield message
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        replica.upstream_lost(upstream)


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
        answer = self._replica.upstreams.get(self._upstream)
        if self._owed >= CREDIT_BATCH and answer is not None:
            answer(Feedback(credits=self._owed))
            self._owed = 0


async def _read(
    requests: AsyncIterator[bytes],
    lane: ReceivingLane,
    replica: Replica,
    upstream: int,
    feedback: asyncio.Queue[Feedback | None],
) -> None:
    """Take frames in, in order; each keeps its credit until it is done with."""
    credits = _Credits(replica, upstream)
    try:
        async for data in requests:
            credits.take()
            try:
                frame, tensor = lane.decode(data)
                replica.on_frame(frame, tensor, upstream, credits.give)
                del frame, tensor  # nothing of a frame is kept here while waiting for the next
            except DecodeError as error:
                metrics.BAD_FRAMES.inc()
                credits.give()
                raise InvalidArgument("frame: it cannot be read", field="frame") from error
            except StagemeshError:
                metrics.BAD_FRAMES.inc()
                credits.give()
                raise
    finally:
        try:
            feedback.put_nowait(None)
        except asyncio.QueueFull:
            pass  # the writer is still draining; it ends with the call
