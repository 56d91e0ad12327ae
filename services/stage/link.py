"""The sending end of a relay: one long-lived stream to one replica, for all sessions.

Frames wait in an outbox and go out in order, within the credits that the receiver grants. The outbox is bounded by
whoever posts: a frame that came in keeps its sender's credit until what became of it has gone out (`sent`), and
the head reserves room before it computes. When the stream breaks the link is over: its owner is told once, and a
new session makes a new link. It is broken as well when the other end holds frames and says nothing (`heartbeat.py`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from stagemesh.begun import Begun
from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import create_channel
from stagemesh.same_network import network_id
from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, ReplicaLoad, RouteHop

from .handshake import HEARTBEAT, PARCELS, Peer, agree, introduce
from .heartbeat import BEAT_S, SILENT_S, Listener
from .local_frames import SendingSocket
from .outbox import Outbox, Packed, Post
from .parcels import Pieces, parts
from .shared_memory import SendingLane
from .unreachable import Unreachable

log = logging.getLogger(__name__)

# Frames in the outbox, or reserved for passes that will fill it, before the head waits.
OUTBOX = 4
RELAY_METHOD = "/stagemesh.v1.StageService/Relay"
# How often a frame looks for a place in shared memory, once a millisecond, before it goes as bytes. A receiver that is
# stuck must not hold up what others have credits for.
PLACE_TRIES = 20
# Where the socket beside a stream ended, the stream may say why until then.
_WHY_S = 0.2
# Of every link of this process: addresses are the same for all.
_unreachable = Unreachable()
# gRPC's words where a connection stands and its other end answers nothing.
_STANDS_STILL = "ping timeout"


def _nobody_waits() -> None:
    """For frames that nothing depends on."""


class Link:
    """A stream to `hop`, owned by the replica `sender`.

    Args:
        sender: id of the replica that sends.
        hop: where to.
        on_feedback: called with each feedback, on the loop.
        on_broken: called once when the stream is over without `close`.
        shared_memory_bytes: what payloads may take if the receiver is on this host; 0: all go in the stream.
        local_sockets: whether frames may take a Unix socket if the receiver is on this host.

    Attributes:
        peer: the other end, once it has answered.
        load: what it told of its load when it last had nothing else to say.
    """

    def __init__(
        self,
        sender: str,
        hop: RouteHop,
        on_feedback: Callable[["Link", Feedback], None],
        on_broken: Callable[["Link", StagemeshError], None],
        shared_memory_bytes: int = 0,
        local_sockets: bool = True,
    ) -> None:
        self.hop = hop
        self.broken = False
        self._sender = sender
        self._on_feedback = on_feedback
        self._on_broken = on_broken
        self._shared_memory_bytes = shared_memory_bytes
        self._patient = True
        self._network = network_id() if local_sockets else ""
        # Beside the stream, where both ends agreed on it.
        self._socket: SendingSocket | None = None
        # Frames of passes that are being computed and will be posted.
        self.reserved = 0
        self._outbox = Outbox()
        # What takes a message, while there is a stream; and what it is taking now: one at a time.
        self._take: Callable[[bytes], Coroutine[Any, Any, None]] | None = None
        self._writing: tuple[Packed, Begun] | None = None
        # What comes next is made ready during a write to the stream.
        self._ahead: Packed | None = None
        # There may be something to write, or room.
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self.peer: Peer | None = None
        self.load: ReplicaLoad | None = None
        # It answered, or never will.
        self._met = asyncio.Event()
        # What the other end grants to begin with: what is missing of it now are frames that it holds.
        self._window = 0
        self._listener = Listener()
        self._task = asyncio.create_task(self._run(), name=f"link-{sender}-{hop.replica_id}")

    def __repr__(self) -> str:
        state = "broken" if self.broken else "up"
        return f"<Link {self._sender}->{self.hop.replica_id} {state} {self._outbox!r} {self._socket!r}>"

    @property
    def queued(self) -> int:
        """Frames in the outbox."""
        return len(self._outbox)

    @property
    def full(self) -> bool:
        """Whether the head should wait for room before it computes more for this link."""
        return not self.broken and self.reserved + len(self._outbox) >= OUTBOX

    def speaks(self, feature: str) -> bool:
        """Whether the other end may be asked for that; no, as long as it has not answered."""
        return self.peer is not None and self.peer.speaks(feature)

    async def met(self) -> Peer:
        """The other end, when it has answered.

        Raises:
            Unavailable: the link broke before.
        """
        await self._met.wait()
        if self.peer is None:
            raise Unavailable(f"the link to stage {self.hop.stage} is broken")
        return self.peer

    async def room(self) -> None:
        """Wait until the link is no longer full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def post(
        self, frame: Frame, tensor: TensorView | None = None, sent: Callable[[], None] = _nobody_waits
    ) -> None:
        """Put a frame in the outbox; `sent` is called once, when gRPC or the system has taken it or the link broke.

        Raises:
            Unavailable: the link is broken.
        """
        if self.broken:
            raise Unavailable(f"the link to stage {self.hop.stage} is broken")
        post = Post(frame, tensor, sent)
        outbox = self._outbox
        idle = self._take is not None and self._writing is None and self._ahead is None and not outbox
        if idle and outbox.credits > 0 and not outbox.lane.waits(tensor):
            self._begin(outbox.pack_with(post))
        else:
            outbox.add(post)
        if self._writing is not None or outbox.ready:
            self._ready.set()

    def _begin(self, packed: Packed) -> None:
        """Hand frames over now; unless they are taken at once, the writer waits for that."""
        assert self._take is not None
        whole = packed.message
        begun = Begun(self._in_parts(packed.pieces) if whole is None else self._take(whole))
        if begun.done:
            packed.sent()
            self._room.set()
        else:
            self._writing = packed, begun

    async def _in_parts(self, pieces: Pieces) -> None:
        assert self._take is not None
        for part in parts(pieces):
            await self._take(part)

    async def close(self) -> None:
        """End the stream without telling the owner."""
        self._met.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        error: StagemeshError = Unavailable(f"stage {self.hop.stage} closed the link")
        channel = create_channel(self.hop.address)
        try:
            await self._connect(channel)
            call = channel.stream_stream(RELAY_METHOD, None, Feedback.FromString)()
            lane = self._outbox.lane = SendingLane(self._shared_memory_bytes)
            hello = Hello(
                from_replica=self._sender,
                to_replica=self.hop.replica_id,
                shared=lane.offer,
                network=self._network,
            )
            await call.write(Frame(hello=introduce(hello)).SerializeToString())
            writer = asyncio.create_task(self._write(call))
            self._ticking = asyncio.get_running_loop().call_later(BEAT_S, self._tick)
            try:
                async for feedback in call:
                    self._listener.heard()
                    if feedback.HasField("hello"):
                        await self._meet(feedback)
                    if feedback.HasField("load"):
                        self.load = feedback.load
                    self._outbox.credits += feedback.credits
                    if self._outbox.ready:
                        self._ready.set()
                    self._on_feedback(self, feedback)
            finally:
                self._ticking.cancel()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
        except StagemeshError as refused:
            error = Unavailable(refused.message)
        except grpc.aio.AioRpcError as rpc_error:
            cause = from_rpc_error(rpc_error)
            if _STANDS_STILL in cause.message:
                # The next one would wait as long to find out the same.
                _unreachable.failed(self.hop.address, time.monotonic())
            error = Unavailable(f"stage {self.hop.stage} was lost: {cause.message}"[:300])
        finally:
            self._outbox.lane.close()
            if self._socket is not None:
                self._socket.close()
            await channel.close()
        self._over(error)

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        """Return once there is a connection.

        Raises:
            Unavailable: there is none, or was none a moment ago.
        """
        address, stage = self.hop.address, self.hop.stage
        if _unreachable.rests(address, time.monotonic()):
            raise Unavailable(f"stage {stage} could not be reached a moment ago")
        timeout_s = _unreachable.timeout_s(address)
        try:
            await asyncio.wait_for(_connected(channel, stage), timeout_s)
        except TimeoutError:
            _unreachable.failed(address, time.monotonic())
            raise Unavailable(f"stage {stage} could not be reached in {timeout_s:g} s") from None
        except Unavailable:
            _unreachable.reached(address)
            raise

    async def _meet(self, feedback: Feedback) -> None:
        """The other end answered.

        Raises:
            FailedPrecondition: it speaks other versions.
        """
        self.peer = agree(feedback.hello, self.hop.replica_id)
        self._window = feedback.credits
        self._outbox.lane.answered(feedback.hello.shared_accepted)
        _unreachable.reached(self.hop.address)
        # Before the first credit is counted, so that all frames take the same way.
        self._socket = (
            await SendingSocket.agreed(feedback.hello, self._socket_over) if self._network else None
        )
        if self._socket is not None:
            self._take = self._socket.write
        self._outbox.parcels = self._socket is None and self.speaks(PARCELS)
        self._met.set()

    def _socket_over(self) -> None:
        """The receiver closed the socket: its stream ends as well, and says why, or else the link ends without that."""
        asyncio.get_running_loop().call_later(
            _WHY_S, self._give_up, Unavailable(f"stage {self.hop.stage} closed the link's socket")
        )

    def _give_up(self, error: StagemeshError) -> None:
        """End a stream that did not end by itself."""
        if not self.broken and not self._task.done():
            self._over(error)
            self._task.cancel()

    def _tick(self) -> None:
        """A step of time: give the other end up when it owes something and says nothing."""
        holds = self.peer is not None and self._outbox.credits < self._window
        if self._listener.tick((holds and self.speaks(HEARTBEAT)) or self.peer is None):
            _unreachable.failed(self.hop.address, time.monotonic())
            self._give_up(Unavailable(f"stage {self.hop.stage} has said nothing for {SILENT_S:g} s"))
        else:
            self._ticking = asyncio.get_running_loop().call_later(BEAT_S, self._tick)

    def _over(self, error: StagemeshError) -> None:
        """The stream is over: what waits is dropped, and the owner told."""
        self.broken = True
        self._met.set()
        self._room.set()
        self._outbox.drop()
        log.warning("relay.failed to=%s stage=%d: %s", self.hop.replica_id, self.hop.stage, error.message)
        self._on_broken(self, error)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        self._take = call.write
        try:
            while True:
                # A socket takes a frame at once, and then nothing wakes this task for the next.
                while self._writing is None and self._outbox.ready:
                    await self._place(self._outbox.first.tensor)
                    self._begin(self._outbox.pack())
                if self._writing is None:
                    self._ready.clear()
                    await self._ready.wait()
                    continue
                packed, begun = self._writing
                if self._outbox.parcels and self._outbox.ready:
                    self._ahead = self._outbox.pack()
                    self._room.set()  # what comes next can come during this write
                await begun
                self._writing = None
                packed.sent()
                if self._ahead is not None:
                    ahead, self._ahead = self._ahead, None
                    self._begin(ahead)
                self._room.set()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, ConnectionError):
            pass  # the reader learns why
        finally:
            self._take = None
            if self._writing is not None:
                packed, begun = self._writing
                self._writing = None
                begun.abandon()
                packed.sent()
            if self._ahead is not None:
                ahead, self._ahead = self._ahead, None
                ahead.sent()

    async def _place(self, tensor: TensorView | None) -> None:
        """Wait a little for a place in shared memory; in vain only once in a row."""
        tries = PLACE_TRIES if self._patient else 0
        while (waits := self._outbox.lane.waits(tensor)) and tries:
            tries -= 1
            await asyncio.sleep(0.001)
        self._patient = not waits


async def _connected(channel: grpc.aio.Channel, stage: int) -> None:
    """Return once there is a connection; a peer that is gone is not waited for.

    Raises:
        Unavailable: the connection was refused.
    """
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise Unavailable(f"stage {stage} cannot be reached")
        await channel.wait_for_state_change(state)
