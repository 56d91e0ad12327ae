"""Read a JSON body without believing its size."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from stagemesh.errors import Cancelled, InvalidArgument

from .errors import BodyTooLarge

MAX_BODY_BYTES = 8 * 2**20


async def read_json(request: Request, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Return the body, a JSON object.

    Raises `BodyTooLarge` as soon as more than `max_bytes` are announced or have arrived, `InvalidArgument`
    (field "body") for anything but a JSON object, and `Cancelled` when the client goes away.
    """
    raw = await _read(request, max_bytes)
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"body: not UTF-8 at byte {error.start}", field="body") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"body: not valid JSON: {error.msg} at line {error.lineno} column {error.colno} (byte {error.pos})",
            field="body",
        ) from None
    except (RecursionError, ValueError):
        raise InvalidArgument("body: JSON nested too deeply or a number too long", field="body") from None
    if not isinstance(value, dict):
        raise InvalidArgument("body: must be a JSON object", field="body")
    if b"\\u" in raw:
        _check_unicode(value)
    return value


def _check_unicode(value: dict[str, Any]) -> None:
    """JSON can spell half a surrogate pair, which is not text; raise `InvalidArgument` that names the field."""
    for name, part in value.items():
        field = "body"
        try:
            name.encode()
            field = name
            json.dumps(part, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{field}: holds half a surrogate pair", field=field) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = BodyTooLarge(f"body: larger than the limit of {max_bytes} bytes", field="body")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > max_bytes:
                raise too_large
            body += chunk
    except ClientDisconnect:
        raise Cancelled("the client went away") from None
    return bytes(body)


async def discard_rest(request: Request, *, max_bytes: int = 2 * 2**30, seconds: float = 15.0) -> None:
    """Take and drop what a refused client still sends, for a while.

    Many clients read the answer only after they have sent everything, and lose it when the connection breaks.
    """
    if "expect" in request.headers and "content-length" in request.headers:
        return  # refused before it was told to go on: it sends nothing
    taken = 0
    try:
        async with asyncio.timeout(seconds):
            while taken < max_bytes:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                taken += len(message.get("body", b""))
    except TimeoutError:
        return
