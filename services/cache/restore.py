"""Between the memory, whose clock never goes back, and what is behind it, which needs the time of day."""

import time

from stagemesh.entry_store import Entry, EntryStore, Watcher

from .behind import Behind
from .entry_file import Row


def tell(behind: Behind) -> Watcher:
    """A watcher that keeps `behind` up to date. To be set once what is there has been restored."""

    def told(tenant: str, key: bytes, entry: Entry | None) -> None:
        if entry is None:
            behind.gone(tenant, key)
            return
        now_ms = time.time_ns() // 10**6
        expires_ms = now_ms + int((entry.expires_at - entry.stored_at) * 1000)
        behind.kept(Row(tenant, key, entry.value, entry.digest, tuple(entry.tags), now_ms, expires_ms))

    return told


def restore(store: EntryStore, row: Row) -> bool:
    """Put an entry from behind into the memory, as old as it is; false when its time has passed or it is too large.

    Times of a clock that was set back meanwhile make an entry young, never older than it may become.
    """
    now_ms = time.time_ns() // 10**6
    age_s = max(0, now_ms - row.stored_ms) / 1000
    left_s = min(row.expires_ms - now_ms, row.expires_ms - row.stored_ms) / 1000
    if left_s <= 0:
        return False
    refused = store.store(
        row.tenant,
        row.key,
        row.value,
        row.digest,
        ttl_s=left_s,
        tags=row.tags,
        age_s=age_s,
        restored=True,
    )
    return not refused


def restore_all(store: EntryStore, rows: list[Row]) -> list[tuple[str, bytes]]:
    """Restore rows, the one written last first; the keys of those that are over or for which there is no room."""
    for row in reversed(rows):
        restore(store, row)
    return [(row.tenant, row.key) for row in rows if (row.tenant, row.key) not in store]
