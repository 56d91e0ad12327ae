"""What every call carries beside its message, and what a failed call means."""

import uuid
from typing import Any

from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error


def call_metadata(api_key: str | None, request_id: str | None) -> tuple[tuple[str, str], ...]:
    """The request id (a new one when none is given) and the credential."""
    metadata = [("x-request-id", request_id or uuid.uuid4().hex)]
    if api_key:
        metadata.append(("authorization", f"Bearer {api_key}"))
    return tuple(metadata)


def translate(error: Any, address: str) -> StagemeshError:
    """The error that a failed call to `address` stands for; one clear line where nothing listens there."""
    translated = from_rpc_error(error)
    if isinstance(translated, Unavailable) and "failed to connect" in translated.message.lower():
        return Unavailable(f"nothing answers at {address}")
    return translated
