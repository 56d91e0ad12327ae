"""Answers within a byte budget: least recently used out first, each valid for its time. Pure.

A cache keeps what it is given in one, a router copies of what it asked for lately.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stagemesh.invalidation import Selector

# What an entry costs besides its bytes: objects and the slots of the tables that hold them.
OVERHEAD_BYTES = 512
TAG_OVERHEAD_BYTES = 128


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value; `stored_at` and `expires_at` in seconds of the store's clock."""

    value: bytes
    digest: bytes
    tags: frozenset[str]
    stored_at: float
    expires_at: float
    cost: int


@dataclass(slots=True)
class Stats:
    """Counts since the start."""

    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    expirations: int = 0
    rejected: int = 0
    invalidated: int = 0


_Key = tuple[str, bytes]
Watcher = Callable[[str, bytes, Entry | None], None]
"""Told of each entry (tenant, key) that is kept, or None when it is dropped."""


class EntryStore:
    """Values by (tenant, key). Never holds more than `max_bytes`, counted by `cost_of`.

    `clock` gives seconds and never goes back. `watcher` may be set to hear of changes. Not thread-safe.
    """

    def __init__(self, *, max_bytes: int, max_entry_bytes: int, clock: Callable[[], float]) -> None:
        self.watcher: Watcher | None = None
        self.max_bytes = max_bytes
        self.max_entry_bytes = max_entry_bytes
        self.bytes_used = 0
        self.stats = Stats()
        self._clock = clock
        self._entries: OrderedDict[_Key, Entry] = OrderedDict()
        self._by_tag: dict[str, set[_Key]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: _Key) -> bool:
        return key in self._entries

    def __repr__(self) -> str:
        return f"EntryStore({len(self)} entries, {self.bytes_used} of {self.max_bytes} bytes, {self.stats})"

    def lookup(self, tenant: str, key: bytes, max_age_s: float | None = None) -> tuple[Entry, float] | None:
        """Return the entry and its age in seconds, and make it the youngest in use; None on a miss.

        One older than `max_age_s` is a miss for whoever asks so, and stays.
        """
        now = self._clock()
        entry = self._entries.get((tenant, key))
        if entry is not None and now >= entry.expires_at:
            self._drop((tenant, key))
            self.stats.expirations += 1
            entry = None
        if entry is None or (max_age_s is not None and now - entry.stored_at > max_age_s):
            self.stats.misses += 1
            return None
        self._entries.move_to_end((tenant, key))
        self.stats.hits += 1
        return entry, now - entry.stored_at

    def store(
        self,
        tenant: str,
        key: bytes,
        value: bytes,
        digest: bytes,
        *,
        ttl_s: float,
        tags: Iterable[str] = (),
        age_s: float = 0.0,
        restored: bool = False,
    ) -> str:
        """Keep a value that is `age_s` old for `ttl_s` seconds more, in place of an older one.

        Returns "" or why it was not kept. What is `restored` is not counted, and the watcher does not hear of it.
        """
        tag_set = frozenset(tags)
        cost = cost_of(tenant, key, value, digest, tag_set)
        if len(value) > self.max_entry_bytes:
            return self.reject(f"the value of {len(value)} bytes is larger than {self.max_entry_bytes}")
        if cost > self.max_bytes:
            return self.reject(f"the entry of {cost} bytes is larger than the budget of {self.max_bytes}")
        if (tenant, key) in self._entries:
            self._drop((tenant, key))
        now = self._clock()
        while self.bytes_used + cost > self.max_bytes:
            oldest = next(iter(self._entries))
            if self._drop(oldest).expires_at <= now:
                self.stats.expirations += 1
            else:
                self.stats.evictions += 1
        entry = Entry(value, digest, tag_set, now - age_s, now + ttl_s, cost)
        self._entries[tenant, key] = entry
        for tag in tag_set:
            self._by_tag.setdefault(tag, set()).add((tenant, key))
        self.bytes_used += cost
        if not restored:
            self.stats.stores += 1
            if self.watcher is not None:
                self.watcher(tenant, key, entry)
        return ""

    def reject(self, reason: str) -> str:
        """Count a value that is not kept; return `reason`."""
        self.stats.rejected += 1
        return reason

    def select(self, selector: Selector) -> list[_Key]:
        """The (tenant, key) of every entry that the selector fits."""
        candidates: Iterable[_Key] = self._entries
        if selector.tags:
            # Of several tags the rarest leaves the fewest to look at.
            rarest = min(selector.tags, key=lambda tag: len(self._by_tag.get(tag, ())))
            candidates = self._by_tag.get(rarest, ())
        elif selector.prefix:
            tags = [tag for tag in self._by_tag if tag.startswith(selector.prefix)]
            candidates = {key for tag in tags for key in self._by_tag[tag]}
        return [key for key in candidates if selector.fits(key[0], self._entries[key].tags)]

    def stale(self, model_tag: str, revision_tag: str) -> list[_Key]:
        """The entries that have the model's tag and not its revision's."""
        held = self._by_tag.get(model_tag, set())
        return [key for key in held if revision_tag not in self._entries[key].tags]

    def drop(self, keys: Iterable[_Key]) -> int:
        """Drop those that are still there, as no longer valid; return how many."""
        present = [key for key in dict.fromkeys(keys) if key in self._entries]
        for key in present:
            self._drop(key)
        self.stats.invalidated += len(present)
        return len(present)

    def expire(self, at_most: int = 1000) -> int:
        """Look at the `at_most` least recently used entries and drop those whose time has passed."""
        now = self._clock()
        oldest = [key for key, _ in zip(self._entries, range(at_most), strict=False)]
        passed = [key for key in oldest if self._entries[key].expires_at <= now]
        for key in passed:
            self._drop(key)
        self.stats.expirations += len(passed)
        return len(passed)

    def _drop(self, key: _Key) -> Entry:
        entry = self._entries.pop(key)
        self.bytes_used -= entry.cost
        for tag in entry.tags:
            holders = self._by_tag[tag]
            holders.discard(key)
            if not holders:
                del self._by_tag[tag]
        if self.watcher is not None:
            self.watcher(*key, None)
        return entry


def cost_of(tenant: str, key: bytes, value: bytes, digest: bytes, tags: frozenset[str]) -> int:
    """Bytes that an entry is counted with: all that it holds, and what holding it takes."""
    held = len(tenant.encode()) + len(key) + len(value) + len(digest)
    return OVERHEAD_BYTES + held + sum(TAG_OVERHEAD_BYTES + len(tag.encode()) for tag in tags)
