"""Errors of the one tree to gRPC status and back, with the field at fault and when to try again."""

import asyncio
import logging
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stagemesh.errors import StagemeshError, Unavailable, from_code
from stagemesh.grpc_wrap import wrap_handler

log = logging.getLogger(__name__)

Metadata = tuple[tuple[str, str | bytes], ...]

DETAILS_KEY = "grpc-status-details-bin"
# Characters that travel: trailers are capped at 8 KiB by common proxies and by gRPC itself.
MAX_MESSAGE = 1500
MAX_FIELD = 200

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, Metadata]:
    """Code, message and trailing metadata for `error`.

    The metadata holds a `google.rpc.Status` with `BadRequest` when the error names a field and `RetryInfo` when
    it says when to try again. An error outside the tree says nothing about itself: `INTERNAL`.
    """
    if not isinstance(error, StagemeshError):
        return grpc.StatusCode.INTERNAL, "internal error", ()
    code = _CODES[error.grpc_code]
    message = error.message[:MAX_MESSAGE]
    status = status_pb2.Status(code=error.grpc_code, message=message)
    if error.field:
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field=error.field[:MAX_FIELD], description=message[:MAX_FIELD])
        status.details.add().Pack(bad)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(max(0.0, error.retry_after_s) * 1e9))
        status.details.add().Pack(retry)
    if not status.details:
        return code, message, ()
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def fail(context: grpc.aio.ServicerContext, error: BaseException) -> None:
    """Have the RPC end with the status of `error` once its handler returns, keeping trailing metadata that it has set.

    Not by `context.abort`: what that raises is kept by the call whose frames it holds, and a service that refuses a
    hundred requests a second would leave its collector thousands of objects each second.
    """
    code, message, metadata = to_status(error)
    trailing = tuple(context.trailing_metadata() or ())
    context.set_code(code)
    context.set_details(message)
    context.set_trailing_metadata((*trailing, *metadata))


FAILED_REPLICA = "stagemesh-failed-replica"
"""Trailing metadata, inside a mesh, of a call that failed: the replica at fault."""


class _Translated:
    """Turns an error that leaves the body into the RPC's status.

    Written out: as a generator it would be the larger part of what an RPC that succeeds pays here.
    """

    __slots__ = ("_context", "_method")

    def __init__(self, context: grpc.aio.ServicerContext, method: str) -> None:
        self._context = context
        self._method = method

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, grpc.aio.AbortError):
            return False
        if isinstance(error, asyncio.CancelledError) and _nobody_left():
            log.error("rpc.cancelled_beneath method=%s", self._method, exc_info=error)
            error = Unavailable("a call that this one needs was cancelled")
        if not isinstance(error, Exception):
            return False
        if isinstance(error, StagemeshError):
            log.debug("rpc.refused method=%s kind=%s: %s", self._method, error.kind, error.message)
        elif isinstance(error, grpc.aio.InternalError):
            # gRPC's own: the caller left while an answer was being written.
            log.debug("rpc.left method=%s: %s", self._method, error)
        else:
            log.error("rpc.failed method=%s", self._method, exc_info=error)
        fail(self._context, error)
        return True


def _nobody_left() -> bool:
    """Whether what was cancelled is something that this RPC waited for, and not the RPC.

    gRPC takes every `CancelledError` for its own and would leave the caller without a status.
    """
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def with_errors(handler: Any, method: str) -> Any:
    """A handler whose errors end the RPC: one of the tree as itself, any other as `INTERNAL`, logged."""
    return wrap_handler(handler, lambda context: _Translated(context, method))


def from_rpc_error(error: grpc.aio.AioRpcError) -> StagemeshError:
    """The error of the tree that a failed call stands for, with its field and `retry_after_s`."""
    field, retry_after_s = "", None
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            field, retry_after_s = _details(value)
    return from_code(error.code().value[0], error.details() or error.code().name, field, retry_after_s)


def _details(value: str | bytes) -> tuple[str, float | None]:
    field, retry_after_s = "", None
    try:
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
        for detail in status.details:
            bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except (DecodeError, UnicodeError, ValueError):
        log.debug("rpc.details_unreadable")
    return field, retry_after_s
