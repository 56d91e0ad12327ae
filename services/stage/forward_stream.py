"""Serves `ForwardStream`: many stateless micro-batches of one router on one long-lived stream.

Each request runs in a task of its own, and the answers go out in the order in which they are ready. A call of its own
would bring every micro-batch a deadline, a cancellation, a status and a trace; here these are fields of the messages:
the head looks at `deadline_unix_ms`, `cancel` ends the task, errors are answers, `traceparent` continues the trace.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial

from google.protobuf.message import DecodeError

from stagemesh import tracing
from stagemesh.errors import (
    AlreadyExists,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    StagemeshError,
)
from stagemesh.grpc_errors import MAX_FIELD, MAX_MESSAGE
from stagemesh.grpc_server import MAX_MESSAGE_BYTES
from stagemesh.v1.stage_pb2 import ForwardReply, ForwardRequest, ForwardResponse, LostReplica, SessionError

log = logging.getLogger(__name__)

MAX_SESSIONS = 1024
"""Micro-batches of one stream under way, and answers that wait to be sent: so many of each. A router stays far below."""
_METHOD = "/stagemesh.v1.StageService/Forward"

Forward = Callable[[ForwardRequest], Awaitable[ForwardResponse]]


async def forward_stream(
    requests: AsyncIterator[bytes],
    forward: Forward,
    *,
    max_sessions: int = MAX_SESSIONS,
    max_reply_bytes: int = MAX_MESSAGE_BYTES,
) -> AsyncGenerator[bytes, None]:
    """Serve one call: serialised `ForwardRequest`s in, serialised `ForwardReply`s out.

    What runs when the stream breaks is cancelled; when the router only stops sending it is still answered. A
    micro-batch above `max_sessions` is refused with RESOURCE_EXHAUSTED, and so is an answer above `max_reply_bytes`,
    which would break the stream for everybody.

    Raises:
        InvalidArgument: a message that cannot be read.
    """
    running: dict[int, asyncio.Task[None]] = {}
    # None comes last.
    replies: asyncio.Queue[bytes | None] = asyncio.Queue(max_sessions)

    async def one(request: ForwardRequest) -> None:
        await replies.put(await _answer(request, forward, max_reply_bytes))

    def forget(session: int, task: asyncio.Task[None]) -> None:
        if running.get(session) is task:
            del running[session]

    async def take(request: ForwardRequest) -> None:
        session = request.session
        known = running.get(session)
        if request.cancel:
            if known is not None:
                known.cancel()
        elif known is not None:
            await replies.put(_refused(session, AlreadyExists("session: it runs already")))
        elif len(running) >= max_sessions:
            full = ResourceExhausted(f"the stage is full: {max_sessions} micro-batches of one router run")
            await replies.put(_refused(session, full))
        else:
            task = running[session] = asyncio.create_task(one(request))
            task.add_done_callback(partial(forget, session))

    async def read() -> None:
        try:
            async for data in requests:
                await take(_parse(data))
            await asyncio.gather(*running.values(), return_exceptions=True)
        except Exception:
            await replies.put(None)
            raise
        await replies.put(None)

    reader = asyncio.create_task(read(), name="forward-stream")
    try:
        while (reply := await replies.get()) is not None:
            yield reply
        await reader
    finally:
        tasks = [reader, *running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
