"""The error tree in OpenAI's shape. Pure."""

import math
from typing import Any

from stagemesh.errors import OutOfRange, StagemeshError

# What the core calls a field, and what the HTTP body calls it.
_RETRY_S = 1.0
"""Of an error that says no more than that it may pass."""
_NAMES = (("chat.messages", "messages"), ("tokens.ids", "prompt"), ("tokens[", "input["), ("texts", "input"))


class BodyTooLarge(OutOfRange):
    """The request's body is beyond the limit."""

    http_status = 413
    kind = "body_too_large"


class UnknownPath(StagemeshError):
    """No such path."""

    grpc_code = 5
    http_status = 404
    kind = "not_found"


class MethodNotAllowed(StagemeshError):
    """The path is there, the method is not."""

    grpc_code = 12
    http_status = 405
    kind = "method_not_allowed"


def error_body(error: StagemeshError) -> dict[str, Any]:
    """Return `{"error": {"message", "type", "param", "code"}}`."""
    field, message = error.field, error.message
    for core_name, http_name in _NAMES:
        if field.startswith(core_name):
            renamed = http_name + field.removeprefix(core_name)
            message = message.replace(field, renamed, 1)
            field = renamed
            break
    return {
        "error": {
            "message": message,
            "type": _type(error.http_status),
            "param": field or None,
            "code": error.kind,
        }
    }


def error_headers(error: StagemeshError) -> dict[str, str]:
    """Return the headers that go with an error.

    `retry-after` (whole seconds) and `retry-after-ms`, which clients of the API read first, whenever trying again can
    help; `www-authenticate`.
    """
    headers = {}
    seconds = error.retry_after_s
    if seconds is None and error.http_status in (429, 503):
        seconds = _RETRY_S
    if seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
        headers["retry-after-ms"] = str(max(1, math.ceil(seconds * 1000)))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error"
    )
