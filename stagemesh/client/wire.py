"""What every call carries beside its message."""

import uuid


def call_metadata(api_key: str | None, request_id: str | None) -> tuple[tuple[str, str], ...]:
    """The request id (a new one when none is given) and the credential."""
    metadata = [("x-request-id", request_id or uuid.uuid4().hex)]
    if api_key:
        metadata.append(("authorization", f"Bearer {api_key}"))
    return tuple(metadata)
