"""Who computes an answer, and who waits for it. Pure: time comes in as an argument, waiters are opaque.

A key that is being computed is a flight. One holds its lease; the others wait in the order in which they came. The
lease ends by an answer, by being given back, or by time; but for an answer, the first who waits takes over.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)
Key = tuple[str, bytes]


@dataclass(slots=True)
class Flight(Generic[W]):
    """`expires_at` in seconds of the caller's clock."""

    key: Key
    lease: bytes
    expires_at: float
    waiters: OrderedDict[W, None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class Handover(Generic[W]):
    """`waiter` has the lease now, and is to be told."""

    waiter: W
    lease: bytes


@dataclass(slots=True)
class FlightStats:
    """Counts since the start."""

    computed: int = 0
    taken_over: int = 0
    coalesced: int = 0
    gave_up: int = 0


class Leases(Generic[W]):
    """At most `max_flights` keys with a lease each, and `max_waiters` who wait, all keys together.

    `new_id` gives lease ids that were never given before.
    """

    def __init__(
        self, *, ttl_s: float, max_flights: int, max_waiters: int, new_id: Callable[[], bytes]
    ) -> None:
        self.ttl_s = ttl_s
        self.stats = FlightStats()
        self.waiting = 0
        self._max_flights = max_flights
        self._max_waiters = max_waiters
        self._new_id = new_id
        self._by_key: dict[Key, Flight[W]] = {}
        self._by_lease: dict[bytes, Flight[W]] = {}

    def __repr__(self) -> str:
        return f"Leases({len(self._by_key)} flights, {self.waiting} waiting, {self.stats})"

    def __len__(self) -> int:
        return len(self._by_key)

    def take(self, key: Key, now: float) -> bytes | None:
        """The lease; b"" when there are too many to give another, so compute without; None when another has it."""
        flight = self._by_key.get(key)
        if flight is None:
            self.stats.computed += 1
            if len(self._by_key) >= self._max_flights:
                return b""
            flight = self._by_key[key] = Flight(key, b"", 0.0)
            return self._grant(flight, now)
        if flight.expires_at <= now and not flight.waiters:
            self.stats.computed += 1
            return self._grant(flight, now)
        return None

    def wait(self, key: Key, waiter: W) -> bool:
        """Join those who wait; False when nobody computes it or too many wait."""
        flight = self._by_key.get(key)
        if flight is None or self.waiting >= self._max_waiters:
            return False
        flight.waiters[waiter] = None
        self.waiting += 1
        return True

    def leave(self, key: Key, waiter: W) -> bool:
        """Stop waiting; whether it was still waiting."""
        flight = self._by_key.get(key)
        if flight is None or waiter not in flight.waiters:
            return False
        del flight.waiters[waiter]
        self.waiting -= 1
        self.stats.gave_up += 1
        return True

    def renew(self, lease: bytes, now: float) -> bool:
        """Hold it for another `ttl_s`; whether it is still held."""
        flight = self._by_lease.get(lease)
        if flight is None or flight.expires_at <= now:
            return False
        flight.expires_at = now + self.ttl_s
        return True

    def release(self, lease: bytes, now: float) -> Handover[W] | None:
        """Give it up without an answer. A lease that is no longer held is nothing to give up."""
        flight = self._by_lease.get(lease)
        return None if flight is None else self._hand_over(flight, now)

    def landed(self, key: Key) -> list[W]:
        """There is an answer, whoever brought it: those who waited for it."""
        waiters = self._end(key)
        self.stats.coalesced += len(waiters)
        return waiters

    def dissolve(self, key: Key) -> list[W]:
        """There is an answer that cannot be kept: those who waited compute for themselves."""
        waiters = self._end(key)
        self.stats.gave_up += len(waiters)
        return waiters

    def key_of(self, lease: bytes) -> Key | None:
        """The key that a lease is held for; None when it is no longer held."""
        flight = self._by_lease.get(lease)
        return None if flight is None else flight.key

    def expire(self, now: float) -> list[Handover[W]]:
        """Hand over what was not renewed in time. Flights that nobody waits for end."""
        passed = [flight for flight in self._by_key.values() if flight.expires_at <= now]
        found = (self._hand_over(flight, now) for flight in passed)
        return [handover for handover in found if handover is not None]

    def _grant(self, flight: Flight[W], now: float) -> bytes:
        self._by_lease.pop(flight.lease, None)
        flight.lease = self._new_id()
        flight.expires_at = now + self.ttl_s
        self._by_lease[flight.lease] = flight
        return flight.lease

    def _hand_over(self, flight: Flight[W], now: float) -> Handover[W] | None:
        if not flight.waiters:
            self._end(flight.key)
            return None
        waiter, _ = flight.waiters.popitem(last=False)
        self.waiting -= 1
        self.stats.computed += 1
        self.stats.taken_over += 1
        return Handover(waiter, self._grant(flight, now))

    def _end(self, key: Key) -> list[W]:
        flight = self._by_key.pop(key, None)
        if flight is None:
            return []
        del self._by_lease[flight.lease]
        self.waiting -= len(flight.waiters)
        return list(flight.waiters)
