"""Copies of answers that a cache gave lately, kept in the router: a hit costs no call. Pure.

The rules are the cache's own (`stagemesh.entry_store`, `stagemesh.invalidation`): tenant, time to live, age, byte budget, and
invalidations by the same records in etcd that caches hear of. What a cache says it has is checked before it is copied.

A copy must not outlive what it is of. An invalidation drops it; what was asked for before one was heard is not copied
after it; nor is what a cache that has not heard of it yet may give meanwhile: an entry that is older than a fitting
invalidation, or was stored within `SETTLE_S` after it. Copies are asked for again after `FRESH_S`, by which the
cache also learns that its entry is in use. While etcd does not answer, copies are not given.
"""

from collections.abc import Callable, Collection, Mapping

from stagemesh import records
from stagemesh.entry_store import Entry, EntryStore
from stagemesh.errors import StagemeshError
from stagemesh.invalidation import Lately, Selector, selector_of
from stagemesh.v1 import cache_pb2, registry_pb2

FRESH_S = 10.0
SETTLE_S = 1.0
KEEP_S = 86400.0
"""How long invalidations are remembered; their records lie in etcd for as long."""
MAX_ENTRY_SHARE = 16
"""The largest copy takes this part of the budget."""


class NearCache:
    """At most `max_bytes` of copies; 0 keeps none. `clock` gives seconds and never goes back.

    `informed` says whether invalidations are heard of at present.
    """

    def __init__(
        self, max_bytes: int, clock: Callable[[], float], informed: Callable[[], bool] = lambda: True
    ) -> None:
        self._informed = informed
        self._clock = clock
        self._store = EntryStore(
            max_bytes=max_bytes, max_entry_bytes=max_bytes // MAX_ENTRY_SHARE, clock=clock
        )
        self._lately = Lately(keep_s=KEEP_S, at_most=4096)
        self._known: set[str] | None = None
        self._asked_after = float("-inf")

    def __repr__(self) -> str:
        return f"NearCache({self._store!r}, {self._lately!r})"

    def __len__(self) -> int:
        return len(self._store)

    @property
    def bytes_used(self) -> int:
        """Bytes of all copies, overhead included."""
        return self._store.bytes_used

    def find(self, tenant: str, key: bytes, max_age_s: int | None = None) -> Entry | None:
        """The copy, if it may be given."""
        if not self._informed():
            return None
        found = self._store.lookup(tenant, key, max_age_s)
        return None if found is None else found[0]

    def keep(self, tenant: str, key: bytes, answer: cache_pb2.CacheLookupResponse, asked_at: float) -> bool:
        """Copy a hit whose digest was checked and that was asked for at `asked_at`; whether it was copied."""
        now = self._clock()
        stored_at = asked_at - answer.age_s  # or a little later
        left_s = min(answer.ttl_left_ms / 1000 - (now - asked_at), FRESH_S)
        tags = answer.tags
        if (
            not self._store.max_bytes
            or left_s <= 0
            or asked_at <= self._asked_after
            or self._lately.covers(tenant, tags, stored_at - SETTLE_S)
        ):
            return False
        refused = self._store.store(
            tenant, key, answer.value, answer.digest, ttl_s=left_s, tags=tags, age_s=now - stored_at
        )
        return not refused

    def forget(self, tenant: str, key: bytes) -> None:
        """Another answer takes the place of this one."""
        self._store.drop([(tenant, key)])

    def expire(self) -> None:
        """Give back the bytes of copies whose time has passed, a few at a time."""
        self._store.expire()

    def invalidated(self, tenant: str, tags: Collection[str], begun_at: float) -> bool:
        """Whether an answer that was begun then has been invalidated since, as far as is known here."""
        return self._lately.covers(tenant, tags, begun_at)

    def listed(self, items: Mapping[str, bytes]) -> None:
        """Take a full listing of etcd: what happened since the last one is not known, so no copy is believed."""
        prefix = records.INVALIDATIONS
        ids = {key for key in items if key.startswith(prefix)}
        for key in ids - self._known if self._known is not None else ():
            self._invalidate(items[key])
        self._known = ids
        self._drop(Selector())
        self._asked_after = self._clock()

    def change(self, key: str, value: bytes | None) -> None:
        """Take one change in etcd, of whatever kind."""
        if key.startswith(records.INVALIDATIONS):
            known = self._known = self._known if self._known is not None else set()
            if value is None:
                known.discard(key)
            elif key not in known:
                known.add(key)
                self._invalidate(value)
        elif key.startswith(records.MODELS):
            self._deployed(key.removeprefix(records.MODELS), value)

    def _invalidate(self, value: bytes) -> None:
        try:
            selector = selector_of(records.from_json(value, cache_pb2.CacheInvalidation).what)
        except (ValueError, StagemeshError):
            selector = Selector()  # it cannot be read: everything may be meant
        self._lately.add(selector, self._clock())
        self._drop(selector)

    def _deployed(self, name: str, value: bytes | None) -> None:
        # Keys hold the revision: what is dropped here is only room, but for a model that is gone and comes back the same.
        model, revision = f"model:{name}", ""
        if value is not None:
            try:
                revision = f"revision:{records.from_json(value, registry_pb2.ModelSpec).revision}"
            except ValueError:
                return
            self._store.drop(self._store.stale(model, revision))
            return
        selector = Selector(tags=frozenset({model}))
        self._lately.add(selector, self._clock())
        self._drop(selector)

    def _drop(self, selector: Selector) -> None:
        self._store.drop(self._store.select(selector))
