"""The file behind the memory: an SQLite database in WAL mode. Blocking; `file_writer` keeps it off the event loop.

Why SQLite: a transaction is whole or absent after SIGKILL at any instant, room of dropped entries is used again
without a compaction of ours, and a damaged structure is found by its own check. What it does not check are the bytes
of a row; each carries a digest, and a file with one wrong row is not believed at all.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .database import CorruptFile, check_structure, connect, open_or_set_aside

T = TypeVar("T")
APPLICATION_ID = 0x53744D63
_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, digest BLOB NOT NULL,
    tags TEXT NOT NULL, stored_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, sum BLOB NOT NULL,
    UNIQUE (tenant, key)
);
CREATE TABLE IF NOT EXISTS invalidations (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS seen (one INTEGER PRIMARY KEY CHECK (one = 1), unix_ms INTEGER NOT NULL);
"""
# Rows in one statement: the interpreter's lock is taken once for all of them, not once for each.
_ROWS = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One entry; times in Unix milliseconds."""

    tenant: str
    key: bytes
    value: bytes
    digest: bytes
    tags: tuple[str, ...]
    stored_ms: int
    expires_ms: int

    def sum(self) -> bytes:
        """SHA-256 over all but the value, whose own digest is part of it."""
        parts = (self.tenant.encode(), self.key, self.digest, _tags(self.tags).encode())
        packed = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
        return hashlib.sha256(packed + struct.pack("<qq", self.stored_ms, self.expires_ms)).digest()


class EntryFile:
    """One database, held by one process. Every method may raise `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = connect(path, APPLICATION_ID, _TABLES, "entries", checkpoint_pages=4000)

    def __repr__(self) -> str:
        return f"EntryFile({self.path.name!r})"

    def write(
        self,
        rows: Sequence[Row],
        gone: Sequence[tuple[str, bytes]] = (),
        invalidations: Iterable[str] = (),
        forgotten: Iterable[str] = (),
        *,
        seen_ms: int = 0,
        to_disk: bool = False,
    ) -> None:
        """All of it or nothing; with `to_disk` it also survives a loss of power.

        `gone` are entries to delete, `invalidations` ids that have been carried out, `forgotten` ids that will not be
        heard of again.
        """
        self._base.execute(f"PRAGMA synchronous = {'FULL' if to_disk else 'NORMAL'}")
        with self._base:
            self._base.execute("BEGIN IMMEDIATE")
            for some in _some(gone, _ROWS):
                marks = ", ".join(["(?, ?)"] * len(some))
                values: list[object] = [value for pair in some for value in pair]
                self._base.execute(f"DELETE FROM entries WHERE (tenant, key) IN (VALUES {marks})", values)  # noqa: S608
            for part in _some(rows, _ROWS):
                marks = ", ".join(["(NULL, ?, ?, ?, ?, ?, ?, ?, ?)"] * len(part))
                values = [value for row in part for value in _columns(row)]
                self._base.execute(f"REPLACE INTO entries VALUES {marks}", values)  # noqa: S608
            self._base.executemany(
                "REPLACE INTO invalidations VALUES (?)", ((each,) for each in invalidations)
            )
            self._base.executemany("DELETE FROM invalidations WHERE id = ?", ((i,) for i in forgotten))
            if seen_ms:
                self._base.execute("REPLACE INTO seen VALUES (1, ?)", (seen_ms,))

    def read(self) -> Iterator[Row]:
        """Every entry, the one written last first. Raises `CorruptFile`."""
        check_structure(self._base)
        for *columns, expected in self._base.execute(
            "SELECT tenant, key, value, digest, tags, stored_ms, expires_ms, sum FROM entries ORDER BY id DESC"
        ):
            yield _checked(columns, expected)

    def invalidations(self) -> set[str]:
        """Ids of the invalidations that were carried out in this file."""
        return {row[0] for row in self._base.execute("SELECT id FROM invalidations")}

    def seen_ms(self) -> int:
        """When its owner last knew of every invalidation; 0 in a new file."""
        row = self._base.execute("SELECT unix_ms FROM seen").fetchone()
        return int(row[0]) if row else 0

    def clear(self) -> None:
        """Drop every entry."""
        with self._base:
            self._base.execute("DELETE FROM entries")

    def close(self) -> None:
        """Fold the log into the file."""
        self._base.close()


def open_file(path: Path) -> tuple[EntryFile, list[Row], bool]:
    """The file, what it holds (the last written first) and whether a damaged one was set aside.

    Raises `ConfigError` as `open_or_set_aside` does.
    """
    return open_or_set_aside(
        path,
        EntryFile,
        lambda found: list(found.read()),
        event="cache.file_corrupt",
        then="nothing of it served",
    )


def _columns(row: Row) -> tuple[object, ...]:
    return (
        row.tenant,
        row.key,
        row.value,
        row.digest,
        _tags(row.tags),
        row.stored_ms,
        row.expires_ms,
        row.sum(),
    )


def _checked(columns: Sequence[object], expected: object) -> Row:
    try:
        tenant, key, value, digest, tags, stored_ms, expires_ms = columns
        row = Row(tenant, key, value, digest, tuple(json.loads(tags)), stored_ms, expires_ms)  # type: ignore[arg-type]
        right = row.sum() == expected and hashlib.sha256(row.key + row.value).digest() == row.digest
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise CorruptFile(f"a row cannot be read: {error}") from None
    if not right:
        raise CorruptFile("a row is not what was written")
    return row


def _tags(tags: Sequence[str]) -> str:
    return json.dumps(list(tags))


def _some(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    return (items[start : start + count] for start in range(0, len(items), count))
