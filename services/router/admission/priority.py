"""How important a request is: three classes, named by its caller and limited by its API key. Pure."""

from enum import IntEnum

from stagemesh.errors import InvalidArgument, PermissionDenied

HEADER = "x-stagemesh-priority"


class Priority(IntEnum):
    """Classes of requests; a lower number goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


BY_NAME = {each.name.lower(): each for each in Priority}


def asked_priority(name: str, highest: Priority = Priority.HIGH) -> Priority:
    """The class that a caller asks for; without a name normal, or the highest that it may have.

    Raises:
        InvalidArgument: there is no such class.
        PermissionDenied: it is above `highest`.
    """
    if not name:
        return max(Priority.NORMAL, highest)
    asked = BY_NAME.get(name.strip().lower())
    if asked is None:
        raise InvalidArgument(f"{HEADER}: must be high, normal or low, not {name[:20]!r}", field=HEADER)
    if asked < highest:
        raise PermissionDenied(f"{HEADER}: this API key allows {highest.name.lower()} at most", field=HEADER)
    return asked
