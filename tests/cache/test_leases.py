"""The leases against a naive model: one list of who waits for each key, in order."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from stagemesh.services.cache.leases import Handover, Key, Leases

KEYS = st.sampled_from([("a", b"1"), ("a", b"2"), ("b", b"1")])
TTL_S = 3.0
MAX_FLIGHTS = 2
MAX_WAITERS = 4


@dataclass
class Flying:
    lease: bytes
    expires_at: float
    waiting: list[int] = field(default_factory=list)


class AgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.given = 0
        self.leases: Leases[int] = Leases(
            ttl_s=TTL_S, max_flights=MAX_FLIGHTS, max_waiters=MAX_WAITERS, new_id=self.new_id
        )
        self.flying: dict[Key, Flying] = {}
        self.old: list[bytes] = [b"never given"]
        self.people = 0
        self.computed = self.taken_over = self.coalesced = self.gave_up = 0

    def new_id(self) -> bytes:
        self.given += 1
        return f"lease {self.given}".encode()

    def count(self) -> int:
        return sum(len(flying.waiting) for flying in self.flying.values())

    def moved(self, key: Key, handover: Handover[int] | None) -> None:
        """What must have come of a lease that ended without an answer."""
        flying = self.flying[key]
        self.old.append(flying.lease)
        if not flying.waiting:
            assert handover is None
            del self.flying[key]
            return
        assert handover is not None
        assert handover.waiter == flying.waiting.pop(0)
        assert handover.lease not in self.old
        flying.lease, flying.expires_at = handover.lease, self.now + TTL_S
        self.computed += 1
        self.taken_over += 1

    @rule(key=KEYS, people=st.integers(0, 3))
    def take_and_wait(self, key: Key, people: int) -> None:
        self.take(key)
        if people:
            self.wait_for(key, people)

    def take(self, key: Key) -> None:
        lease = self.leases.take(key, self.now)
        flying = self.flying.get(key)
        if flying is None:
            self.computed += 1
            if len(self.flying) == MAX_FLIGHTS:
                assert lease == b""
                return
            assert lease
            self.flying[key] = Flying(lease, self.now + TTL_S)
        elif flying.expires_at <= self.now and not flying.waiting:
            assert lease
            assert lease != flying.lease
            self.old.append(flying.lease)
            flying.lease, flying.expires_at = lease, self.now + TTL_S
            self.computed += 1
        else:
            assert lease is None

    def wait_for(self, key: Key, people: int) -> None:
        for _ in range(people):
            self.people += 1
            joined = self.leases.wait(key, self.people)
            assert joined == (key in self.flying and self.count() < MAX_WAITERS)
            if joined:
                self.flying[key].waiting.append(self.people)

    @rule(key=KEYS, who=st.integers(0, 4))
    def leave(self, key: Key, who: int) -> None:
        waiting = self.flying[key].waiting if key in self.flying else []
        if who < len(waiting):
            assert self.leases.leave(key, waiting.pop(who))
            self.gave_up += 1
        else:
            assert not self.leases.leave(key, -1)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        flying = self.flying[data.draw(st.sampled_from(sorted(self.flying)))]
        assert self.leases.renew(flying.lease, self.now) == (flying.expires_at > self.now)
        if flying.expires_at > self.now:
            flying.expires_at = self.now + TTL_S

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.flying)))
        self.moved(key, self.leases.release(self.flying[key].lease, self.now))

    @rule(data=st.data())
    def what_is_no_longer_held_does_nothing(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.old))
        assert not self.leases.renew(lease, self.now)
        assert self.leases.release(lease, self.now) is None
        assert self.leases.key_of(lease) is None

    @precondition(lambda self: self.flying)
    @rule(key=KEYS, kept=st.booleans())
    def answered(self, key: Key, kept: bool) -> None:
        woken = self.leases.landed(key) if kept else self.leases.dissolve(key)
        flying = self.flying.pop(key, None)
        assert woken == (flying.waiting if flying else [])
        if flying:
            self.old.append(flying.lease)
        if kept:
            self.coalesced += len(woken)
        else:
            self.gave_up += len(woken)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        handovers = {each.waiter: each for each in self.leases.expire(self.now)}
        for key in [key for key, flying in self.flying.items() if flying.expires_at <= self.now]:
            first = self.flying[key].waiting[:1]
            self.moved(key, handovers.pop(first[0]) if first else None)
        assert handovers == {}

    @invariant()
    def agrees(self) -> None:
        assert len(self.leases) == len(self.flying) <= MAX_FLIGHTS
        assert self.leases.waiting == self.count() <= MAX_WAITERS
        stats = self.leases.stats
        assert (stats.computed, stats.taken_over) == (self.computed, self.taken_over)
        assert (stats.coalesced, stats.gave_up) == (self.coalesced, self.gave_up)
        assert all(self.leases.key_of(flying.lease) == key for key, flying in self.flying.items())
        assert len(self.leases._by_lease) == len(self.flying)


AgainstModel.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestAgainstModel = AgainstModel.TestCase
