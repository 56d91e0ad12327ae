"""Serves `ForwardStream`: many stateless micro-batches of one router on one long-lived stream.

Each request runs in a task, and the answers go out in the order in which they are ready. A call of its own
would bring every micro-batch a deadline, a cancellation, a status and a trace; here these are fields of the messages:
the head looks at `deadline_unix_ms`, `cancel` ends the task, errors are answers, `traceparent` continues the trace.

A router on the same host may send its messages over a Unix socket instead (`stagemesh/local_door.py`), and is answered
there. The gRPC stream says which of the two ends lives: when it ends so does the socket, and the other way round.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from google.protobuf.message import DecodeError

from stagemesh import tracing
from stagemesh.errors import (
    AlreadyExists,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    StagemeshError,
    Unavailable,
)
from stagemesh.grpc_errors import MAX_FIELD, MAX_MESSAGE
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.local_door import Door
from stagemesh.message_socket import MessageSocket
from stagemesh.v1.stage_pb2 import ForwardReply, ForwardRequest, ForwardResponse, LostReplica, SessionError

log = logging.getLogger(__name__)

MAX_SESSIONS = 1024
"""Micro-batches of one stream under way, and answers that wait to be sent: so many of each. A router stays far below."""
IDLE = 64
"""Tasks of one stream that wait for another micro-batch; making one takes as long as reading a small message."""
_METHOD = "/stagemesh.v1.StageService/Forward"

Forward = Callable[[ForwardRequest], Awaitable[ForwardResponse]]
# Takes a serialised reply; returns when there is room for another one.
Put = Callable[[bytes], Awaitable[None]]


async def forward_stream(
    requests: AsyncIterator[bytes],
    forward: Forward,
    *,
    max_sessions: int = MAX_SESSIONS,
    max_reply_bytes: int = MAX_MESSAGE_BYTES,
    door: Door | None = None,
) -> AsyncGenerator[bytes, None]:
    """Serve one call: serialised `ForwardRequest`s in, serialised `ForwardReply`s out.

    What runs when the stream breaks is cancelled; when the router only stops sending it is still answered. A
    micro-batch above `max_sessions` is refused with RESOURCE_EXHAUSTED, and so is an answer above `max_reply_bytes`,
    which would break the stream for everybody. `door` is where the router may come in, and is closed at the end.

    Raises:
        InvalidArgument: a message that cannot be read.
        Unavailable: the router closed its socket, or reads nothing from it.
    """
    sessions = _Sessions(forward, max_sessions, max_reply_bytes)
    # None comes last.
    replies: asyncio.Queue[bytes | None] = asyncio.Queue(max_sessions)

    async def read() -> None:
        try:
            async for data in requests:
                if refused := sessions.take(_parse(data), replies.put):
                    await replies.put(refused)
            await sessions.through()
        except Exception:
            await replies.put(None)
            raise
        await replies.put(None)

    reader = asyncio.create_task(read(), name="forward-stream")
    tasks: list[asyncio.Task[None]] = [reader]
    failed: list[StagemeshError] = []

    def end(error: StagemeshError) -> None:
        if not failed:
            failed.append(error)
            tasks.append(asyncio.create_task(replies.put(None)))

    local = _Local(sessions, end) if door is not None else None
    if local is not None and door is not None:
        tasks.append(asyncio.create_task(local.wait(door), name="forward-socket"))
    try:
        while (reply := await replies.get()) is not None:
            yield reply
        if failed:
            raise failed[0]
        await reader
    finally:
        if door is not None:
            door.close()
        if local is not None:
            local.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, sessions.stop(), return_exceptions=True)


class _Sessions:
    """Micro-batches of one stream that run, whichever way they came."""

    def __init__(self, forward: Forward, most: int, max_reply_bytes: int) -> None:
        self._forward = forward
        self._most = most
        self._max_reply_bytes = max_reply_bytes
        self._running: dict[int, asyncio.Task[None]] = {}
        # Every task, and what those without a micro-batch wait for.
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: dict[asyncio.Task[None], asyncio.Future[tuple[ForwardRequest, Put]]] = {}
        self._loop = asyncio.get_running_loop()
        # Set when nothing runs.
        self._quiet = asyncio.Event()

    def take(self, request: ForwardRequest, put: Put) -> bytes | None:
        """Begin it, or cancel what it names; the reply when it is refused. Others are put where they are wanted."""
        session = request.session
        known = self._running.get(session)
        if request.cancel:
            if known is not None:
                known.cancel()
        elif known is not None:
            return _refused(session, AlreadyExists("session: it runs already"))
        elif len(self._running) >= self._most:
            return _refused(
                session, ResourceExhausted(f"the stage is full: {self._most} micro-batches of one router run")
            )
        elif self._idle:
            # Whoever came last: its memory is still at hand.
            task, waits = self._idle.popitem()
            self._running[session] = task
            waits.set_result((request, put))
        else:
            task = self._running[session] = self._loop.create_task(self._work(request, put))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return None

    async def _work(self, request: ForwardRequest, put: Put) -> None:
        """Answer it, and then others that come, until it is cancelled or enough wait."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                await put(await _answer(request, self._forward, self._max_reply_bytes))
            finally:
                self._over(request.session)
            del request, put  # nothing of one is kept while waiting for the next
            if len(self._idle) >= IDLE:
                return
            waits = self._idle[task] = self._loop.create_future()
            request, put = await waits

    def _over(self, session: int) -> None:
        self._running.pop(session, None)
        if not self._running:
            self._quiet.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._idle.pop(task, None)
        # Of a micro-batch that was cancelled before it began nothing has run.
        for session in [session for session, its in self._running.items() if its is task]:
            self._over(session)

    async def through(self) -> None:
        """Return when all are answered."""
        while self._running:
            self._quiet.clear()
            await self._quiet.wait()

    async def stop(self) -> None:
        """Cancel all of them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Local:
    """The router's messages that come over a socket."""

    def __init__(self, sessions: _Sessions, end: Callable[[StagemeshError], None]) -> None:
        self._sessions = sessions
        self._end = end
        self._socket: MessageSocket | None = None

    async def wait(self, door: Door) -> None:
        """Take messages from whoever comes in."""
        connection = await door.admitted()
        self._socket = MessageSocket(connection, self._came, self._over, MAX_MESSAGE_BYTES)

    def _came(self, data: bytes) -> None:
        assert self._socket is not None
        try:
            refused = self._sessions.take(_parse(data), self._put)
            if refused is not None and not self._socket.send(refused):
                raise Unavailable("the router asks for more than is allowed, and reads no answers")
        except ConnectionError:
            pass  # `_over` was told
        except StagemeshError as error:
            self.close()
            self._end(error)

    async def _put(self, reply: bytes) -> None:
        assert self._socket is not None
        try:
            if not self._socket.send(reply):
                await self._socket.drained()
        except ConnectionError:
            pass  # nobody waits any more

    def _over(self, why: str) -> None:
        self._end(Unavailable(f"the socket of the stream ended: {why}"))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


async def _answer(request: ForwardRequest, forward: Forward, max_reply_bytes: int) -> bytes:
    """The serialised reply: an error, too, is an answer."""
    try:
        if tracing.enabled():
            # Imported by servers that trace anyway.
            from stagemesh.grpc_tracing import serving_message

            with serving_message(_METHOD, request.traceparent):
                response = await forward(request)
        else:
            response = await forward(request)
    except StagemeshError as error:
        log.debug("rpc.refused method=%s kind=%s: %s", _METHOD, error.kind, error.message)
        return _refused(request.session, error)
    except Exception:
        log.exception("rpc.failed method=%s", _METHOD)
        return _refused(request.session, InternalError("internal error"))
    reply = ForwardReply(session=request.session, response=response).SerializeToString()
    if len(reply) > max_reply_bytes:
        larger = f"the answer takes {len(reply)} bytes, more than the {max_reply_bytes} of one message"
        return _refused(request.session, ResourceExhausted(larger))
    return reply


def _refused(session: int, error: StagemeshError) -> bytes:
    lost = LostReplica(replica_id=error.culprit) if error.culprit else None
    said = SessionError(
        lost=lost,
        session=session,
        code=error.grpc_code,
        message=error.message[:MAX_MESSAGE],
        field=error.field[:MAX_FIELD],
        retry_after_ms=error.retry_after_ms,
    )
    return ForwardReply(session=session, error=said).SerializeToString()


def _parse(data: bytes) -> ForwardRequest:
    try:
        return ForwardRequest.FromString(data)
    except DecodeError as error:
        raise InvalidArgument("the message is not a ForwardRequest") from error
