"""What every call carries beside its message, how connections are made, and what a failed call means."""

import uuid
from typing import Any

from stagemesh.client.failover import Failure
from stagemesh.errors import StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import channel_options


def client_options() -> list[tuple[str, Any]]:
    """Options of a blocking channel, those of `create_channel`: a frozen router is noticed within 3 s, its return within 1."""
    return [
        *channel_options(),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),
    ]


def call_metadata(api_key: str | None, request_id: str | None) -> tuple[tuple[str, str], ...]:
    """The request id (a new one when none is given) and the credential."""
    metadata = [("x-request-id", request_id or uuid.uuid4().hex)]
    if api_key:
        metadata.append(("authorization", f"Bearer {api_key}"))
    return tuple(metadata)


def failure_of(error: Any, address: str) -> Failure:
    """A failed call to `address`; a router says in the trailing metadata of its own errors which request it was."""
    answered = any(key == "x-request-id" for key, _ in error.trailing_metadata() or ())
    return Failure(translate(error, address), answered)


def translate(error: Any, address: str) -> StagemeshError:
    """The error that a failed call to `address` stands for; one clear line where nothing listens there."""
    translated = from_rpc_error(error)
    if isinstance(translated, Unavailable) and "failed to connect" in translated.message.lower():
        return Unavailable(f"nothing answers at {address}")
    return translated
