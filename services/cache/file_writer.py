"""Writes the file behind the memory in a thread of its own: many changes in one transaction, at most so many waiting.

Of several changes to one entry only the last is written. When too many bytes wait, new entries are not written, and
counted; that an entry is gone is never dropped, since the file must not give back what the memory let go.
"""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stagemesh.invalidation import Selector

from .behind import BehindStats
from .entry_file import EntryFile, Row

log = logging.getLogger(__name__)
PAUSE_S = 0.01
"""Changes are gathered for this long."""
RETRY_S = 1.0
SEEN_EVERY_S = 10.0
FLUSH_S = 5.0
_Key = tuple[str, bytes]


@dataclass(slots=True)
class _Pending:
    changes: dict[_Key, Row | None] = field(default_factory=dict)
    invalidations: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    bytes: int = 0


class FileWriter:
    """Owns the file and its thread until `close`. Its methods are called on one event loop.

    `informed` says whether invalidations are heard of at present; when that was last so is kept in the file.
    """

    name = "file"
    answers = False

    def __init__(
        self, file: EntryFile, *, max_waiting_bytes: int, informed: Callable[[], bool] = lambda: True
    ) -> None:
        self.stats = BehindStats()
        self._file = file
        self._max_waiting_bytes = max_waiting_bytes
        self._informed = informed
        self._carried_out = file.invalidations()
        self._lock = threading.Lock()
        self._pending = _Pending()
        self._wake = threading.Event()
        self._ending = False
        self._written = 0
        self._taken = 0
        self._seen_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="cache-file", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"FileWriter({self._file!r}, {self.stats})"

    def kept(self, row: Row) -> None:
        """Write the entry soon; dropped, and counted, when too much waits."""
        size = len(row.value)
        with self._lock:
            self._forget(row.tenant, row.key)
            if self._pending.bytes + size > self._max_waiting_bytes:
                self.stats.writes_dropped += 1
                self._pending.changes[row.tenant, row.key] = None
            else:
                self._pending.changes[row.tenant, row.key] = row
                self._pending.bytes += size
            self.stats.writes_waiting = len(self._pending.changes)
        self._wake.set()

    def gone(self, tenant: str, key: bytes) -> None:
        """Delete the entry soon."""
        with self._lock:
            self._forget(tenant, key)
            self._pending.changes[tenant, key] = None
            self.stats.writes_waiting = len(self._pending.changes)
        self._wake.set()

    async def find(self, tenant: str, key: bytes) -> Row | None:
        """Nothing: what is in the file is in the memory too."""
        return None

    async def invalidate(self, selector: Selector, invalidation: str) -> None:
        """The entries went through `gone`; return when that is on the disk, after `FLUSH_S` at the latest."""
        self._carried_out.add(invalidation)
        with self._lock:
            self._pending.invalidations.add(invalidation)
        await self.flush()

    async def drop_stale(self, model_tag: str, revision_tag: str) -> None:
        """The entries went through `gone`."""

    def carried_out(self, invalidation: str) -> bool:
        """Whether it was, before this process or in it."""
        return invalidation in self._carried_out

    def forget(self, invalidation: str) -> None:
        """It will not be heard of again."""
        self._carried_out.discard(invalidation)
        with self._lock:
            self._pending.forgotten.add(invalidation)

    async def flush(self) -> bool:
        """Return once everything that waits now is written; false when that takes longer than `FLUSH_S`."""
        self._wake.set()
        with self._lock:
            # What is being written now was taken before; what waits is taken next.
            target = self._taken + 1 if self._waiting() else self._taken
        until = time.monotonic() + FLUSH_S
        while self._written < target:
            if time.monotonic() > until:
                log.warning("cache.file_slow: not written after %.0f s: %r", FLUSH_S, self)
                return False
            await asyncio.sleep(0.005)
        return True

    async def close(self) -> None:
        """Write what waits, fold the log into the file and let go of it."""
        self._ending = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join, 30.0)

    def _forget(self, tenant: str, key: bytes) -> None:
        before = self._pending.changes.pop((tenant, key), None)
        if before is not None:
            self._pending.bytes -= len(before.value)

    def _waiting(self) -> bool:
        return bool(self._pending.changes or self._pending.invalidations)

    def _run(self) -> None:
        while True:
            self._wake.wait(SEEN_EVERY_S)
            self._wake.clear()
            ending = self._ending
            if not ending:
                time.sleep(PAUSE_S)
            with self._lock:
                pending, self._pending = self._pending, _Pending()
                self._taken += 1
                self.stats.writes_waiting = 0
            if self._write(pending):
                self._written = self._taken
            elif not ending:
                time.sleep(RETRY_S)
            if ending:
                with contextlib.suppress(sqlite3.Error):
                    self._file.close()
                return

    def _write(self, pending: _Pending) -> bool:
        rows = [row for row in pending.changes.values() if row is not None]
        gone = [key for key, row in pending.changes.items() if row is None]
        now = time.monotonic()
        seen_ms = 0
        if self._informed() and (now - self._seen_at >= SEEN_EVERY_S or self._ending):
            seen_ms, self._seen_at = time.time_ns() // 10**6, now
        if not (rows or gone or pending.invalidations or pending.forgotten or seen_ms):
            return True
        try:
            self._file.write(
                rows,
                gone,
                pending.invalidations,
                pending.forgotten,
                seen_ms=seen_ms,
                to_disk=bool(pending.invalidations),
            )
        except sqlite3.Error as error:
            log.warning("cache.file_failed: %s; %d entries are not written", error, len(rows))
            self._again(pending, len(rows))
            return False
        return True

    def _again(self, pending: _Pending, dropped: int) -> None:
        """Keep what must not get lost of a write that failed: that entries are gone."""
        with self._lock:
            self.stats.writes_dropped += dropped
            for key in pending.changes:
                self._pending.changes.setdefault(key, None)
            self._pending.invalidations |= pending.invalidations
        self._wake.set()
