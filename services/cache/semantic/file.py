"""The file behind the semantic layer: questions, evidence and counts, over a restart. Blocking.

Beside the entries' file, in an SQLite database of its own, because it is written at another pace: once a second all that
has changed, as one transaction. A kill loses the last second of evidence and never part of it. Each record carries a
digest; a file with a wrong one is set aside with a warning, and the layer begins without evidence, that is: it learns
before it serves.
"""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from stagemesh.v1 import semantic_pb2 as pb

from ..database import CorruptFile, check_structure, connect, open_or_set_aside
from .layer import Changes, Saved, SemanticLayer
from .rows import Name

log = logging.getLogger(__name__)
APPLICATION_ID = 0x53744D73
_ROW, _FAULT, _STATE, _USAGE = 1, 2, 3, 4
_TABLE = (
    "CREATE TABLE IF NOT EXISTS records (kind INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL, "
    "sum BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID"
)


class SemanticFile:
    """One database, held by one process. Used by one thread; methods may raise `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = connect(path, APPLICATION_ID, _TABLE, "records")

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
        check_structure(self._base)
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
    """The file and what it holds; a damaged one is set aside. Raises `ConfigError` as `open_or_set_aside` does."""
    file, saved, _ = open_or_set_aside(
        path,
        SemanticFile,
        SemanticFile.read,
        event="cache.semantic_file_corrupt",
        then="evidence is gathered anew",
    )
    return file, saved


def _record(kind: int, name: bytes, value: Message) -> tuple[int, bytes, bytes, bytes]:
    data = value.SerializeToString(deterministic=True)
    return kind, name, data, _sum(kind, name, data)


def _sum(kind: int, name: bytes, value: bytes) -> bytes:
    return hashlib.sha256(bytes([kind % 256]) + len(name).to_bytes(8, "little") + name + value).digest()


def _name(name: Name) -> bytes:
    (tenant, partition), key = name
    return hashlib.sha256(partition + key + tenant.encode()).digest()
