"""The routers that a client knows, and which of them it asks. Pure; clock and random generator come in as arguments."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stagemesh.errors import InvalidArgument

FIRST_REST_S, LONGEST_REST_S = 0.1, 2.0
"""How long a router that could not be reached is left alone: twice as long each time."""


def addresses_of(address: str | Sequence[str]) -> tuple[str, ...]:
    """The routers that "host:port,host:port", or a list of such, names; each once.

    Raises `InvalidArgument` (field "address") when there is none, or one without a port.
    """
    given = [address] if isinstance(address, str) else list(address)
    found = [each.strip() for words in given for each in words.split(",") if each.strip()]
    if not found:
        raise InvalidArgument("address: name at least one router as host:port", field="address")
    for each in found:
        host, _, port = each.rpartition(":")
        if not (host and port.isdecimal()) and not each.startswith("unix:"):
            raise InvalidArgument(f"address: {each[:80]!r} is not host:port", field="address")
    return tuple(dict.fromkeys(found))


@dataclass
class _Target:
    failures: int = 0
    rest_until: float = 0.0


class Targets:
    """Keeps to one router until that one fails; then to the next one that is not resting.

    The first one is drawn, so that many clients with the same list share the routers out.
    """

    def __init__(self, addresses: Sequence[str], rng: random.Random) -> None:
        self.addresses = tuple(addresses)
        self._rng = rng
        self._targets = {address: _Target() for address in self.addresses}
        self._current = rng.randrange(len(self.addresses))

    def __repr__(self) -> str:
        states = ", ".join(f"{address} failures={each.failures}" for address, each in self._targets.items())
        return f"Targets({states}, current={self.current})"

    @property
    def current(self) -> str:
        """The router that is asked now."""
        return self.addresses[self._current]

    def choose(self, avoid: Collection[str], now: float) -> tuple[str, float] | None:
        """Which router outside `avoid` to ask, and the seconds until it may be; None when there is no other."""
        count = len(self.addresses)
        ring = [(self._current + step) % count for step in range(count)]
        ring = [index for index in ring if self.addresses[index] not in avoid]
        if not ring:
            return None
        best = min(ring, key=lambda index: max(self._rest(index), now))
        self._current = best
        return self.addresses[best], max(0.0, self._rest(best) - now)

    def answered(self, address: str) -> None:
        """It answered: whatever went wrong with it is over."""
        target = self._targets[address]
        target.failures, target.rest_until = 0, 0.0

    def lost(self, address: str, now: float) -> None:
        """It could not be reached, or its connection broke. Of many calls that say so at once the first one counts."""
        target = self._targets[address]
        if now < target.rest_until:
            return
        rest = min(FIRST_REST_S * 2.0 ** min(target.failures, 16), LONGEST_REST_S)
        target.failures += 1
        target.rest_until = now + rest * self._rng.uniform(0.5, 1.0)

    def refused(self, address: str, now: float, retry_after_s: float) -> None:
        """It answered that it cannot before so many seconds have passed."""
        target = self._targets[address]
        target.rest_until = max(target.rest_until, now + retry_after_s)

    def _rest(self, index: int) -> float:
        return self._targets[self.addresses[index]].rest_until
