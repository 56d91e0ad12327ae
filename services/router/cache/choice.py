"""Which cache keeps a key, and which are left alone for a moment. Pure; time comes in as an argument."""

import hashlib
from collections.abc import Sequence

PAUSE_S = 1.0
"""How long a cache that failed is left alone."""


def rank_caches(addresses: Sequence[str], key: bytes) -> list[str]:
    """The caches in the order in which they are to be asked for `key`.

    Rendezvous hashing: when one comes or goes, only the keys that it keeps move, and those of one that is lost go to
    all of the others alike.
    """
    if len(addresses) < 2:
        return list(addresses)
    return sorted(addresses, key=lambda each: hashlib.sha256(each.encode() + key).digest(), reverse=True)


class Pauses:
    """Caches that failed a moment ago."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Pauses({self._until})"

    def failed(self, address: str, now: float) -> None:
        """Leave it alone from now on for `PAUSE_S`."""
        self._until = {each: until for each, until in self._until.items() if until > now}
        self._until[address] = now + PAUSE_S

    def paused(self, address: str, now: float) -> bool:
        """Whether it is to be left alone."""
        return bool(self._until) and self._until.get(address, 0.0) > now

    def first(self, ranked: Sequence[str], now: float) -> str:
        """The first that may be asked; empty when there is none."""
        for address in ranked:
            if not self.paused(address, now):
                return address
        return ""
