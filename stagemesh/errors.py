"""The one error tree. Services raise these; they are translated to gRPC and HTTP in one place each.

Messages go to clients: they name the field and say what to do, and hold no paths, prompts or secrets.
"""

import math
from typing import ClassVar


class StagemeshError(Exception):
    """Base of every error that a client may see.

    `field` names the request field at fault, dotted (`inputs[0].shape`), or is empty. `retry_after_s` is set
    where trying again later can help. `culprit` is the replica at fault where one is known; it stays in the mesh.
    """

    # Numbers of grpc.StatusCode and HTTP; plain integers so that pure files need not import grpc.
    grpc_code: ClassVar[int] = 13
    http_status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.culprit = ""

    @property
    def retry_after_ms(self) -> int:
        """`retry_after_s` in whole milliseconds, rounded up, as messages carry it; 0: not set."""
        return 0 if self.retry_after_s is None else min(max(1, math.ceil(self.retry_after_s * 1000)), 2**31)


class InternalError(StagemeshError):
    """A fault of ours."""


class InvalidArgument(StagemeshError):
    """Bad input; `field` names it."""

    grpc_code = 3
    http_status = 400
    kind = "invalid_argument"


class OutOfRange(StagemeshError):
    """Too long: a prompt beyond the context, a message beyond the size limit."""

    grpc_code = 11
    http_status = 400
    kind = "out_of_range"


class NotFound(StagemeshError):
    """Unknown model."""

    grpc_code = 5
    http_status = 404
    kind = "not_found"


class AlreadyExists(StagemeshError):
    """A model of that name is deployed with other settings."""

    grpc_code = 6
    http_status = 409
    kind = "already_exists"


class Unauthenticated(StagemeshError):
    """No credential, or an unknown one."""

    grpc_code = 16
    http_status = 401
    kind = "unauthenticated"


class PermissionDenied(StagemeshError):
    """A known credential that does not allow this."""

    grpc_code = 7
    http_status = 403
    kind = "permission_denied"


class FailedPrecondition(StagemeshError):
    """The model cannot do this, or the system is not in the state for it."""

    grpc_code = 9
    http_status = 400
    kind = "failed_precondition"


class Unavailable(StagemeshError):
    """No live route, or the route broke."""

    grpc_code = 14
    http_status = 503
    kind = "unavailable"


class ResourceExhausted(StagemeshError):
    """Overload: refused early; `retry_after_s` says when to try again."""

    grpc_code = 8
    http_status = 429
    kind = "resource_exhausted"


class DeadlineExceeded(StagemeshError):
    """The request's deadline passed."""

    grpc_code = 4
    http_status = 504
    kind = "deadline_exceeded"


class Cancelled(StagemeshError):
    """The caller went away."""

    grpc_code = 1
    http_status = 499
    kind = "cancelled"


class ConfigError(StagemeshError):
    """The configuration cannot be used; the message lists every fault, one a line."""


class CheckpointError(FailedPrecondition):
    """The checkpoint is missing, truncated or of an architecture that cannot be split."""


_BY_CODE: dict[int, type[StagemeshError]] = {
    kind.grpc_code: kind
    for kind in (
        InternalError,
        InvalidArgument,
        OutOfRange,
        NotFound,
        AlreadyExists,
        Unauthenticated,
        PermissionDenied,
        FailedPrecondition,
        Unavailable,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
    )
}


def seconds_of(retry_after_ms: int) -> float | None:
    """`retry_after_s` of a message's `retry_after_ms`."""
    return retry_after_ms / 1000 if retry_after_ms else None


def from_code(code: int, message: str, field: str = "", retry_after_s: float | None = None) -> StagemeshError:
    """The error for a gRPC status number; an unknown number becomes `InternalError`."""
    return _BY_CODE.get(code, InternalError)(message, field=field, retry_after_s=retry_after_s)
