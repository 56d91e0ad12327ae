"""What the cache's files have in common: an SQLite database in WAL mode that one process has to itself. Blocking."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from stagemesh.errors import ConfigError

log = logging.getLogger(__name__)


class CorruptFile(Exception):
    """Something in the file is not what was written."""


class _File(Protocol):
    def close(self) -> None:
        """Fold the log into the file."""


F = TypeVar("F", bound=_File)
C = TypeVar("C")


def connect(
    path: Path, application_id: int, tables: str, own: str, *, checkpoint_pages: int = 1000
) -> sqlite3.Connection:
    """Open it, with its tables.

    Args:
        path: the file; a new one is made.
        application_id: the mark of this kind of file.
        tables: statements that make what is not there yet.
        own: a table of this kind of file only.
        checkpoint_pages: of the log, before it is folded into the file.

    Raises:
        CorruptFile: it has the table, and another mark.
        ConfigError: it is a database of something else.
        sqlite3.Error: it is no database, or another process has it.
    """
    base = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        base.execute("PRAGMA locking_mode = EXCLUSIVE")
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        base.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
        (application,) = base.execute("PRAGMA application_id").fetchone()
        names = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if application != application_id:
            if own in names:
                raise CorruptFile("its mark is not a cache's")
            if names:
                raise ConfigError(f"file: {str(path)!r} is a database of something else")
            base.execute(f"PRAGMA application_id = {application_id}")
        base.executescript(tables)
    except BaseException:
        base.close()
        raise
    return base


def check_structure(base: sqlite3.Connection) -> None:
    """Raise `CorruptFile` where SQLite's own check finds damage."""
    if base.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise CorruptFile("its structure is damaged")


def open_or_set_aside(
    path: Path, make: Callable[[Path], F], read: Callable[[F], C], *, event: str, then: str
) -> tuple[F, C, bool]:
    """The file, what it holds, and whether a damaged one was set aside, about which `event` and `then` say what happens.

    Raises:
        ConfigError: it cannot be used at all: no permission, another cache has it, not a file of this kind.
    """
    try:
        return *_read_whole(path, make, read), False
    except (CorruptFile, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            why = "another process has it" if "locked" in str(error) else str(error)
            raise ConfigError(f"file: {str(path)!r} cannot be used: {why}") from None
        kept_as = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
        log.warning("%s: %s; it is set aside as %s, and %s", event, error, kept_as, then)
        for suffix in ("", "-wal"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(kept_as.with_name(kept_as.name + suffix))
    return *_read_whole(path, make, read), True


def _read_whole(path: Path, make: Callable[[Path], F], read: Callable[[F], C]) -> tuple[F, C]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Questions and answers are nobody else's business.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise ConfigError(f"file: {str(path)!r} cannot be used: {error.strerror}") from None
    found = make(path)
    try:
        return found, read(found)
    except BaseException:
        found.close()
        raise
