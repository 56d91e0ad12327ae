"""Addresses that could not be reached a moment ago, so that not every session waits to find out. Pure.

A connection that is refused costs nothing; one whose packets are swallowed, or whose other end stands still, takes
seconds. It is then not tried for a while, twice as long each time, and the tries that follow are short.
"""

# How long a first connection may take, and one to an address that lately took too long.
CONNECT_TIMEOUT_S = 3.0
RETRY_TIMEOUT_S = 1.0
# How long nobody tries after one failure, and after many.
FIRST_REST_S = 0.5
LONGEST_REST_S = 4.0
# Addresses that are forgotten first when there are more.
_MOST = 1024


class Unreachable:
    """What is known of addresses, on the caller's clock (seconds)."""

    def __init__(self) -> None:
        # Address -> (until when it is left alone, how long the next time).
        self._resting: dict[str, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"<Unreachable {len(self._resting)}>"

    def rests(self, address: str, now: float) -> bool:
        """Whether it is not to be tried now."""
        known = self._resting.get(address)
        return known is not None and now < known[0]

    def timeout_s(self, address: str) -> float:
        """How long a try may take."""
        return RETRY_TIMEOUT_S if address in self._resting else CONNECT_TIMEOUT_S

    def failed(self, address: str, now: float) -> None:
        """A try took too long."""
        _, rest_s = self._resting.pop(address, (0.0, FIRST_REST_S))
        self._resting[address] = now + rest_s, min(LONGEST_REST_S, 2 * rest_s)
        if len(self._resting) > _MOST:
            del self._resting[next(iter(self._resting))]

    def reached(self, address: str) -> None:
        """It answered, or refused at once."""
        self._resting.pop(address, None)
