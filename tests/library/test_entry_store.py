"""The store against a naive model that keeps a plain list in order of use."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stagemesh.entry_store import Entry, EntryStore, cost_of
from stagemesh.invalidation import Selector

TENANTS = st.sampled_from(["a", "b"])
KEYS = st.sampled_from([bytes([i]) * 4 for i in range(4)])
TAGS = st.sets(st.sampled_from(["model:x", "model:y", "revision:1"]))
# Not often everything: little would be left to look at.
SELECTORS = st.sampled_from(
    [
        Selector(),
        Selector("a"),
        Selector("b", frozenset({"model:x"})),
        Selector("", frozenset({"model:x", "revision:1"})),
        Selector("", frozenset({"none"})),
        Selector("a", frozenset(), "model:"),
        Selector("", frozenset({"revision:1"}), "mod"),
        Selector("", frozenset(), "revision:1"),
        Selector("b", frozenset(), "x"),
    ]
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Held:
    tenant: str
    key: bytes
    value: bytes
    tags: set[str]
    stored_at: float
    expires_at: float

    @property
    def cost(self) -> int:
        return cost_of(self.tenant, self.key, self.value, b"d", frozenset(self.tags))


class AgainstModel(RuleBasedStateMachine):
    """`held` is in order of use, the least recent first."""

    MAX_BYTES = 3000
    MAX_ENTRY = 1200

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = EntryStore(max_bytes=self.MAX_BYTES, max_entry_bytes=self.MAX_ENTRY, clock=self.clock)
        self.held: list[Held] = []
        self.told: dict[tuple[str, bytes], bytes] = {}
        self.store.watcher = self.hear
        self.hits = self.misses = self.rejected = self.dropped = self.stores = self.replaced = 0

    def hear(self, tenant: str, key: bytes, entry: Entry | None) -> None:
        if entry is None:
            del self.told[tenant, key]
        else:
            self.told[tenant, key] = entry.value

    def find(self, tenant: str, key: bytes) -> Held | None:
        return next((h for h in self.held if (h.tenant, h.key) == (tenant, key)), None)

    @rule(tenant=TENANTS, key=KEYS, size=st.integers(0, 1300), ttl=st.integers(1, 20), tags=TAGS)
    def put(self, tenant: str, key: bytes, size: int, ttl: int, tags: set[str]) -> None:
        value = tenant.encode() * size
        reason = self.store.store(tenant, key, value, b"d", ttl_s=ttl, tags=tags)
        assert bool(reason) == (size > self.MAX_ENTRY)
        if reason:
            self.rejected += 1
            return
        self.stores += 1
        if (old := self.find(tenant, key)) is not None:
            self.held.remove(old)
            self.replaced += 1
        new = Held(tenant, key, value, tags, self.clock.now, self.clock.now + ttl)
        while sum(h.cost for h in self.held) + new.cost > self.MAX_BYTES:
            self.held.pop(0)
            self.dropped += 1
        self.held.append(new)

    @rule(tenant=TENANTS, key=KEYS, max_age_s=st.none() | st.integers(0, 10))
    def get_any(self, tenant: str, key: bytes, max_age_s: int | None) -> None:
        self.get(tenant, key, max_age_s)

    def get(self, tenant: str, key: bytes, max_age_s: int | None) -> None:
        found = self.store.lookup(tenant, key, max_age_s)
        held = self.find(tenant, key)
        if held is not None and self.clock.now >= held.expires_at:
            self.held.remove(held)
            self.dropped += 1
            held = None
        if held is None or (max_age_s is not None and self.clock.now - held.stored_at > max_age_s):
            assert found is None
            self.misses += 1
            return
        assert found is not None
        entry, age_s = found
        assert (entry.value, entry.digest) == (held.value, b"d")
        assert set(entry.value) <= set(tenant.encode())
        assert age_s == self.clock.now - held.stored_at
        self.held.remove(held)
        self.held.append(held)
        self.hits += 1

    @rule(data=st.data(), max_age_s=st.none() | st.integers(0, 10), seconds=st.integers(0, 3))
    def get_one_that_is_held(self, data: st.DataObject, max_age_s: int | None, seconds: int) -> None:
        self.clock.now += seconds
        if self.held:
            held = data.draw(st.sampled_from(self.held))
            self.get(held.tenant, held.key, max_age_s)

    @rule(seconds=st.integers(0, 8))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(selector=SELECTORS)
    def invalidate(self, selector: Selector) -> None:
        tenant, tags, prefix = selector.tenant, selector.tags, selector.prefix
        gone = [
            h
            for h in self.held
            if tenant in ("", h.tenant)
            and tags <= h.tags
            and (not prefix or any(tag.startswith(prefix) for tag in h.tags))
        ]
        chosen = self.store.select(selector)
        assert sorted(chosen) == sorted((h.tenant, h.key) for h in gone)
        assert self.store.drop([*chosen, *chosen]) == len(gone)
        self.held = [h for h in self.held if h not in gone]

    @rule()
    def redeploy(self) -> None:
        gone = [h for h in self.held if "model:x" in h.tags and "revision:1" not in h.tags]
        stale = self.store.stale("model:x", "revision:1")
        assert sorted(stale) == sorted((h.tenant, h.key) for h in gone)
        assert self.store.drop(stale) == len(gone)
        self.held = [h for h in self.held if h not in gone]

    @rule(at_most=st.integers(1, 12))
    def expire(self, at_most: int) -> None:
        gone = [h for h in self.held[:at_most] if h.expires_at <= self.clock.now]
        assert self.store.expire(at_most) == len(gone)
        self.held = [h for h in self.held if h not in gone]
        self.dropped += len(gone)

    @invariant()
    def agrees(self) -> None:
        stats = self.store.stats
        assert len(self.store) == len(self.held)
        assert self.store.bytes_used == sum(h.cost for h in self.held) <= self.MAX_BYTES
        assert (stats.hits, stats.misses) == (self.hits, self.misses)
        assert (stats.stores, stats.rejected) == (self.stores, self.rejected)
        assert stats.evictions + stats.expirations == self.dropped
        live = self.stores - self.dropped - self.replaced - stats.invalidated
        assert live == len(self.held)
        assert self.told == {(h.tenant, h.key): h.value for h in self.held}
        assert set(self.store._by_tag) == {tag for h in self.held for tag in h.tags}


AgainstModel.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestAgainstModel = AgainstModel.TestCase


def test_cost_counts_all_that_is_held() -> None:
    plain = cost_of("t", b"k" * 32, b"", b"d" * 32, frozenset())
    assert plain > 65
    assert cost_of("t", b"k" * 32, b"x" * 1000, b"d" * 32, frozenset()) == plain + 1000
    assert cost_of("t", b"k" * 32, b"", b"d" * 32, frozenset({"model:x"})) > plain + len("model:x")


def test_many_small_entries_stay_in_the_budget() -> None:
    store = EntryStore(max_bytes=100_000, max_entry_bytes=1000, clock=lambda: 0.0)
    for number in range(10_000):
        assert store.store("t", number.to_bytes(32, "big"), b"", b"", ttl_s=1) == ""
    assert store.bytes_used <= 100_000
    assert 0 < len(store) < 200
    assert store.stats.evictions == 10_000 - len(store)
    assert store.lookup("t", (9_999).to_bytes(32, "big")) is not None


@pytest.mark.parametrize("size", [901, 5000])
def test_what_cannot_fit_is_refused_and_drops_nothing(size: int) -> None:
    store = EntryStore(max_bytes=1500, max_entry_bytes=900, clock=lambda: 0.0)
    assert store.store("t", b"k", b"v", b"d", ttl_s=9) == ""
    assert "larger" in store.store("t", b"other", b"v" * size, b"d", ttl_s=9)
    assert store.lookup("t", b"k") is not None
