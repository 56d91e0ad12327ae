"""The file behind the semantic layer: questions, evidence and counts, over a restart. Blocking.

Beside the entries' file, in an SQLite database of its own, because it is written at another pace: once a second all that
has changed, as one transaction. A kill loses the last second of evidence and never part of it. Each record carries a
digest; a file with a wrong one is set aside with a warning, and the layer begins without evidence, that is: it learns
before it serves.
"""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from stagemesh.errors import ConfigError
from stagemesh.v1 import semantic_pb2 as pb

from .layer import Changes, Saved, SemanticLayer
from .rows import Name

log = logging.getLogger(__name__)
APPLICATION_ID = 0x53744D73
_ROW, _FAULT, _STATE, _USAGE = 1, 2, 3, 4
_TABLE = (
    "CREATE TABLE IF NOT EXISTS records (kind INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, "
    "sum BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
)


class CorruptFile(Exception):
    """Something in the file is not what was written."""


class SemanticFile:
    """One database, held by one process. Used by one thread; methods may raise `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = _connect(path)

    def __repr__(self) -> str:
        return f"SemanticFile({self.path.name!r})"

    def write(self, changes: Changes) -> None:
        """All of it or nothing."""
        put: list[tuple[int, bytes, bytes, bytes]] = []
        gone: list[tuple[int, bytes]] = []
        for name, row in changes.rows.items():
            key = _name(name)
            # A question that is new, or gone, has no faults from before.
            gone.append((_FAULT, key))
            if row is None:
                gone.append((_ROW, key))
            else:
                put.append(_record(_ROW, key, row))
        for name, (wrong, wrong_at) in changes.faults.items():
            (tenant, partition), key = name
            fault = pb.SemanticFault(
                tenant=tenant, partition=partition, key=key, wrong=wrong, wrong_at=wrong_at
            )
            put.append(_record(_FAULT, _name(name), fault))
        for scope, state in changes.states.items():
            key = hashlib.sha256("\0".join(scope).encode()).digest()
            if state is None:
                gone.append((_STATE, key))
            else:
                put.append(_record(_STATE, key, state))
        put += [_record(_USAGE, each.model.encode(), each) for each in changes.usage]
        with self._base:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("DELETE FROM records WHERE kind = ? AND name = ?", gone)
            self._base.executemany("REPLACE INTO records VALUES (?, ?, ?, ?)", put)

    def read(self) -> Saved:
        """All that was written. Raises `CorruptFile`."""
        if self._base.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise CorruptFile("its structure is damaged")
        saved = Saved()
        for kind, value in self._records():
            try:
                if kind == _ROW:
                    saved.rows.append(pb.SemanticRow.FromString(value))
                elif kind == _FAULT:
                    fault = pb.SemanticFault.FromString(value)
                    name = (fault.tenant, fault.partition), fault.key
                    saved.faults[name] = fault.wrong, fault.wrong_at
                elif kind == _STATE:
                    saved.states.append(pb.SemanticState.FromString(value))
                elif kind == _USAGE:
                    saved.usage.append(pb.CacheUsage.FromString(value))
            except DecodeError as error:
                raise CorruptFile(f"a record cannot be read: {error}") from None
        return saved

    def close(self) -> None:
        """Fold the log into the file."""
        self._base.close()

    def _records(self) -> Iterator[tuple[int, bytes]]:
        for kind, name, value, sum_ in self._base.execute(
            "SELECT kind, CAST(name AS BLOB), CAST(value AS BLOB), CAST(sum AS BLOB) FROM records"
        ):
            if not isinstance(name, bytes) or not isinstance(value, bytes) or _sum(kind, name, value) != sum_:
                raise CorruptFile("a record is not what was written")
            yield kind, value


def open_behind(path: Path, layer: SemanticLayer) -> SemanticFile:
    """The file, with what it holds put into the layer; raises `ConfigError` as `open_file` does."""
    file, saved = open_file(path)
    try:
        layer.restore(saved)
    except ValueError as error:
        log.warning("cache.semantic_file_unusable: %s; the rest of it is not used", error)
    log.info("cache.semantic_restored questions=%d models=%d", len(layer.rows), len(layer.scopes))
    return file


def open_file(path: Path) -> tuple[SemanticFile, Saved]:
    """The file and what it holds; a damaged one is set aside.

    Raises `ConfigError` when it cannot be used at all: no permission, another cache has it, not a file of this kind.
    """
    try:
        return _read_whole(path)
    except (CorruptFile, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            why = "another process has it" if "locked" in str(error) else str(error)
            raise ConfigError(f"file: {str(path)!r} cannot be used: {why}") from None
        kept_as = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        log.warning(
            "cache.semantic_file_corrupt: %s; it is set aside as %s, and evidence is gathered anew",
            error,
            kept_as,
        )
        for suffix in ("", "-wal"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(kept_as.with_name(kept_as.name + suffix))
    return _read_whole(path)


def _read_whole(path: Path) -> tuple[SemanticFile, Saved]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Questions are nobody else's business.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(f"file: {str(path)!r} cannot be used: {error.strerror}") from None
    found = SemanticFile(path)
    try:
        return found, found.read()
    except BaseException:
        found.close()
        raise


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        base.execute("PRAGMA locking_mode = EXCLUSIVE")
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        (application,) = base.execute("PRAGMA application_id").fetchone()
        names = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if application != APPLICATION_ID:
            if names:
                raise ConfigError(f"file: {str(path)!r} is a database of something else")
            base.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        base.execute(_TABLE)
    except BaseException:
        base.close()
        raise
    return base


def _record(kind: int, name: bytes, value: Message) -> tuple[int, bytes, bytes, bytes]:
    data = value.SerializeToString(deterministic=True)
    return kind, name, data, _sum(kind, name, data)


def _sum(kind: int, name: bytes, value: bytes) -> bytes:
    return hashlib.sha256(bytes([kind % 256]) + len(name).to_bytes(8, "little") + name + value).digest()


def _name(name: Name) -> bytes:
    (tenant, partition), key = name
    return hashlib.sha256(partition + key + tenant.encode()).digest()
