"""Who asks, under which id, and until when."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What every request carries besides its message.

    `deadline` is in seconds of `time.monotonic()`. `policy_override` names a balancing policy for this request
    only, or is empty. `metadata` holds the caller's gRPC metadata or HTTP headers, names in lower case.
    """

    request_id: str
    tenant: str
    deadline: float
    policy_override: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
