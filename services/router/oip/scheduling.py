"""Priority and timeout as the protocol's schedule policy extension has them: parameters of the request itself. Pure.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_schedule_policy.html: priority 1
is the highest, 0 means none was given; the timeout is in microseconds. Levels beyond the lowest class are of that class.
"""

from stagemesh.errors import InvalidArgument
from stagemesh.oip import open_inference_pb2 as oip

from ..admission.priority import Priority
from .codec import parameter_values


def asked_class(request: oip.ModelInferRequest) -> str:
    """The name of the class that is asked for; empty for none. Raises `InvalidArgument` naming the parameter."""
    level = _whole(request, "priority")
    return Priority(min(level, len(Priority)) - 1).name.lower() if level else ""


def asked_seconds(request: oip.ModelInferRequest) -> float | None:
    """Seconds that the caller waits; None when it does not say. Raises `InvalidArgument` naming the parameter."""
    return _whole(request, "timeout") / 1e6 or None


def _whole(request: oip.ModelInferRequest, name: str) -> int:
    if name not in request.parameters:
        return 0
    value = parameter_values(request.parameters).get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgument(
            f"parameters.{name}: must be a whole number of at least 0, not {str(value)[:40]!r}",
            field=f"parameters.{name}",
        )
    return value
