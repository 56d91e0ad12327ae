"""The router's end of `ForwardStream`: one long-lived stream to a head that all small micro-batches share.

A call of its own costs a micro-batch more than twice what a message on an open stream does. The first request opens
the stream; when it breaks everything that waits on it fails with `Unavailable`, so that the router may try other
routes, and the next request opens a new one. A head that does not know the method is called the old way.

Where the head is on this host and nothing stands between (`stagemesh/local_door.py`), messages take a Unix socket as soon
as both ends agreed on one, which is a moment after the stream was opened. The stream says whether the head lives.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

import grpc.aio

from stagemesh.begun import Begun
from stagemesh.errors import (
    DeadlineExceeded,
    ResourceExhausted,
    StagemeshError,
    Unavailable,
    from_code,
    seconds_of,
)
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.local_door import NETWORK_KEY, enter_offered
from stagemesh.message_socket import MessageSocket
from stagemesh.same_network import network_id
from stagemesh.v1.stage_pb2 import ForwardReply, ForwardRequest, ForwardResponse, SessionError

log = logging.getLogger(__name__)

IN_FLIGHT = 256
"""Micro-batches on one stream at once; more wait for room."""
ASK_AGAIN_S = 60.0
"""How long a head that did not know the method is called the old way; it may have been upgraded since."""
# Where the socket beside a stream ended, the stream may say why until then.
_WHY_S = 0.2


def _nothing() -> None:
    pass


class NotSpokenError(Exception):
    """The head does not know `ForwardStream`."""


class ForwardStream:
    """The stream to one head, opened on first use. `close` ends it; its tasks live no longer than it."""

    def __init__(
        self,
        address: str,
        open_call: Callable[..., Any],
        *,
        in_flight: int = IN_FLIGHT,
        local_sockets: bool = True,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.address = address
        self._network = network_id() if local_sockets else ""
        self._largest = max_message_bytes
        self._open_call = open_call
        self._connection: _Connection | None = None
        self._most = in_flight
        self._running = 0
        # Who waits for room; a place is handed on without being free in between.
        self._queue: deque[asyncio.Future[None]] = deque()
        self._ask_again_at = float("-inf")
        self._closed = False

    def __repr__(self) -> str:
        waiting = len(self._connection.waiting) if self._connection is not None else 0
        state = "idle" if self._connection is None else "unary" if not self.spoken else "open"
        return f"<ForwardStream {self.address} {state} waiting={waiting}>"

    @property
    def spoken(self) -> bool:
        """Whether the head may know the method."""
        return time.monotonic() >= self._ask_again_at

    async def forward(
        self, request: ForwardRequest, timeout_s: float, when_sent: Callable[[], None] = _nothing
    ) -> ForwardResponse:
        """Send one micro-batch and wait for its answer; leaving early stops it on the stage.

        `when_sent` is called once: it is on its way, or has to wait for that, and nothing else has happened on the
        event loop. What must be counted can be, while the stage works already.

        Raises:
            NotSpokenError: nothing was computed; make a call of its own.
            DeadlineExceeded: `timeout_s` passed.
            Unavailable: the stream broke.
            StagemeshError: what the head answered.
        """
        connection = self._connection
        if self._running >= self._most or connection is None or connection.over:
            when_sent()
            when_sent = _nothing
        if self._running >= self._most:
            timeout_s = await self._wait_for_room(timeout_s)
        else:
            self._running += 1
        try:
            connection = self._connection
            if connection is None or connection.over:
                connection = await self._connected()
            reply = await connection.exchange(request, timeout_s, when_sent)
        except NotSpokenError:
            if self.spoken:
                log.info("forward_stream.not_spoken by=%s", self.address)
                self._ask_again_at = time.monotonic() + ASK_AGAIN_S
            raise
        finally:
            self._running -= 1
            if self._queue:
                self._next()
        if reply.HasField("error"):
            raise _error_of(reply.error)
        return reply.response

    async def close(self, grace_s: float = 0.0) -> None:
        """End the stream; what waits on it gets `grace_s` seconds to be answered and fails then."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.waiting and grace_s > 0:
            await asyncio.wait(list(connection.waiting.values()), timeout=grace_s)
        await connection.close()

    async def _wait_for_room(self, timeout_s: float) -> float:
        """Take a place; what is left of the time."""
        until = time.monotonic() + timeout_s
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException as error:
            if turn in self._queue:
                self._queue.remove(turn)
            else:  # it was given a place in the same moment
                self._running -= 1
                self._next()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("Deadline Exceeded") from None
            raise
        return until - time.monotonic()

    def _next(self) -> None:
        """Give a free place to whoever has waited longest for one."""
        for turn in self._queue:
            if not turn.done():
                self._queue.remove(turn)
                self._running += 1
                turn.set_result(None)
                return

    async def _connected(self) -> "_Connection":
        """The connection, opened anew where the one before is over."""
        while (connection := self._connection) is not None and connection.over:
            await connection.close()
            if self._connection is connection:
                self._connection = None
        if connection is None and self._closed:
            raise Unavailable(f"the stream to {self.address} is not used any more")
        if connection is None:
            # Not in the context, and so not in the trace, of the request that happens to come first.
            connection = Context().run(_Connection, self._open_call, self._network, self._largest)
            self._connection = connection
        return connection


class _Connection:
    """One RPC of a `ForwardStream`, from its first message until it breaks."""

    def __init__(self, open_call: Callable[..., Any], network: str, largest: int) -> None:
        self.over = False
        self.waiting: dict[int, asyncio.Future[ForwardReply]] = {}
        self._call = open_call(metadata=((NETWORK_KEY, network),)) if network else open_call()
        self._largest = largest
        # Beside the stream, once both ends agreed on it; and why it is over, if it is.
        self._socket: MessageSocket | None = None
        self._why = ""
        self._enters = network != ""
        self._loop = asyncio.get_running_loop()
        # The writer waits for the write that has begun, then sends what came meanwhile.
        self._begun: Begun | None = None
        self._outbox: deque[ForwardRequest] = deque()
        # Until when each answer is waited for, and when the earliest of them is looked at: most are answered long before.
        self._deadlines: dict[int, float] = {}
        self._looks_at = float("inf")
        self._look: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._task = self._loop.create_task(self._run(), name="forward-stream")

    async def exchange(
        self, request: ForwardRequest, timeout_s: float, when_sent: Callable[[], None]
    ) -> ForwardReply:
        """Send `request` and wait for the reply to its session; `when_sent` is called in between."""
        session = request.session
        socket = self._socket
        self._send(request, socket)
        # The stage works from here on, and this while it does.
        answer: asyncio.Future[ForwardReply] = self._loop.create_future()
        self.waiting[session] = answer
        when_sent()
        self._deadlines[session] = until = self._loop.time() + timeout_s
        if until < self._looks_at:
            self._look_at(until)
        try:
            return await answer
        finally:
            self._deadlines.pop(session, None)
            if self.waiting.get(session) is answer:
                del self.waiting[session]
                self._abandon(request, socket)

    def _look_at(self, when: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._looks_at = when
        self._look = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        """Fail what has waited long enough, and look again when the next has."""
        now = self._loop.time()
        self._look, self._looks_at = None, float("inf")
        for session, until in list(self._deadlines.items()):
            if until <= now:
                del self._deadlines[session]
                answer = self.waiting.get(session)
                if answer is not None and not answer.done():
                    answer.set_exception(DeadlineExceeded("Deadline Exceeded"))
        if self._deadlines:
            self._look_at(min(self._deadlines.values()))

    def _abandon(self, request: ForwardRequest, socket: MessageSocket | None) -> None:
        """Nobody waits for `request` any more, which went that way: what takes it back must not overtake it."""
        for index, unsent in enumerate(self._outbox):
            if unsent is request:
                del self._outbox[index]
                return
        if not self.over:
            self._send(ForwardRequest(session=request.session, cancel=True), socket)

    def _send(self, request: ForwardRequest, socket: MessageSocket | None) -> None:
        if socket is not None:
            with contextlib.suppress(ConnectionError):  # who waits hears of it from `_run`
                socket.send(request.SerializeToString())
            return
        if self._begun is not None:
            self._outbox.append(request)
            return
        # Begun here and now: waking the writer first would take the request another turn of the loop. Waited for
        # there, because gRPC ends a call whose write is cancelled, and whoever asks here may be cancelled.
        self._begun = Begun(self._call.write(request))
        self._filled.set()

    async def close(self) -> None:
        """End the RPC; what still waits fails with `Unavailable`."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        why, spoken, answered = "the head closed the stream", True, False
        tasks = [self._loop.create_task(self._write(), name="forward-stream-writer")]
        if self._enters:
            tasks.append(self._loop.create_task(self._enter(), name="forward-stream-socket"))
        try:
            async for reply in self._call:
                answered = True
                self._answered(reply)
        except grpc.aio.AioRpcError as error:
            # A write under way when the call ends makes gRPC forget why it ended and say INTERNAL.
            code = error.code()
            spoken = code is not grpc.StatusCode.UNIMPLEMENTED and (
                answered or code is not grpc.StatusCode.INTERNAL
            )
            why = f"the connection to the head broke: {from_rpc_error(error).message}"
        except asyncio.CancelledError:
            # By `close`, or because the channel was closed below the call.
            why = self._why or "the stream to the head was closed"
        except Exception as error:
            log.exception("forward_stream.failed")
            why = f"the stream to the head was closed after {type(error).__name__}"
        finally:
            self.over = True
            for task in tasks:
                task.cancel()
            self._call.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._socket is not None:
                self._socket.close()
            if self._look is not None:
                self._look.cancel()
            waiting, self.waiting = self.waiting, {}
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(Unavailable(why) if spoken else NotSpokenError())

    def _answered(self, reply: ForwardReply) -> None:
        answer = self.waiting.pop(reply.session, None)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    async def _enter(self) -> None:
        """Take the socket for what comes from now on, if the head offers one and it works."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            connection = await enter_offered(self._call)
            if connection is not None:
                self._socket = MessageSocket(
                    connection,
                    lambda data: self._answered(ForwardReply.FromString(data)),
                    self._lost,
                    self._largest,
                )

    def _lost(self, why: str) -> None:
        """The socket is over, and so is the stream; why it is may come with it in a moment."""
        self._why = f"the connection to the head broke: {why}"
        self._loop.call_later(_WHY_S, self._call.cancel)

    async def _write(self) -> None:
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                if self._begun is not None:
                    await self._begun
                while self._outbox:
                    await self._call.write(self._outbox.popleft())
                self._begun = None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader learns why


def _error_of(said: SessionError) -> StagemeshError:
    error = from_code(said.code, said.message, said.field, seconds_of(said.retry_after_ms))
    error.culprit = said.lost.replica_id
    if isinstance(error, ResourceExhausted) and error.retry_after_s is None:
        error.retry_after_s = 1.0  # a stage of before did not say
    return error
