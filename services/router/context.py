"""Who asks, under which id, how importantly, and until when."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from stagemesh.errors import InvalidArgument

from .admission.priority import Priority

TIMEOUT = "x-stagemesh-timeout"
"""Header with the seconds that the caller waits, for doors whose protocol has no deadline of its own."""


class RequestContext(NamedTuple):
    """What every request carries besides its message.

    `deadline` is in seconds of `time.monotonic()`. `policy_override` names a balancing policy for this request
    only, or is empty. `priority` is its class where requests wait. `metadata` holds the caller's gRPC metadata or
    HTTP headers, names in lower case.
    """

    request_id: str
    tenant: str
    deadline: float
    policy_override: str = ""
    priority: Priority = Priority.NORMAL
    metadata: Mapping[str, str] = MappingProxyType({})


def asked_timeout(metadata: Mapping[str, str]) -> float | None:
    """Seconds that the caller says it waits, or None; raises `InvalidArgument` for what is not a number above 0."""
    text = metadata.get(TIMEOUT, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidArgument(f"{TIMEOUT}: must be seconds above 0, not {text[:20]!r}", field=TIMEOUT)
    return seconds
