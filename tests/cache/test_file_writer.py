import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from stagemesh.services.cache import file_writer
from stagemesh.services.cache.entry_file import EntryFile, open_file
from stagemesh.services.cache.file_writer import FileWriter

from stagemesh.invalidation import Selector

from .test_entry_file import of, reopened, row


def writer(path: Path, max_waiting_bytes: int = 10**6) -> FileWriter:
    file, _, _ = open_file(path)
    return FileWriter(file, max_waiting_bytes=max_waiting_bytes)


class Gate:
    """Holds the file's writes up, or lets them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.fails = 0
        self.writes = 0
        write = EntryFile.write

        def gated(file: EntryFile, *args: Any, **kwargs: Any) -> None:
            self.open.wait(30)
            self.writes += 1
            if self.fails:
                self.fails -= 1
                raise sqlite3.OperationalError("disk I/O error")
            write(file, *args, **kwargs)

        monkeypatch.setattr(EntryFile, "write", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(file_writer, "RETRY_S", 0.01)
    return Gate(monkeypatch)


async def test_what_was_kept_is_in_the_file_and_what_is_gone_is_not(tmp_path: Path) -> None:
    behind = writer(tmp_path / "e")
    rows = [row(str(i)) for i in range(50)]
    for each in rows:
        behind.kept(each)
    newer = row("3", b"newer")
    behind.kept(newer)
    behind.gone("t", rows[7].key)
    assert await behind.flush()
    behind.gone("t", rows[8].key)
    await behind.close()
    expected = of([each for i, each in enumerate(rows) if i not in (7, 8)]) | of([newer])
    assert reopened(tmp_path / "e") == (expected, False)
    assert behind.stats.writes_dropped == 0


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path, gate: Gate) -> None:
    behind = writer(tmp_path / "e", max_waiting_bytes=1000)
    old = row("old", b"o" * 100)
    behind.kept(old)
    assert await behind.flush()
    gate.open.clear()
    behind.kept(row("first"))
    async with asyncio.timeout(20):
        while behind._pending.changes:  # until it is being written, and stands still
            await asyncio.sleep(0.005)
    rows = [row(str(i), b"v" * 300) for i in range(5)]
    for each in rows:
        behind.kept(each)
    assert behind.stats.writes_dropped == 2
    behind.gone("t", rows[0].key)
    # No room for its newer version: then the older one must not come back either.
    behind.kept(row("old", b"n" * 900))
    assert behind.stats.writes_dropped == 3
    gate.open.set()
    await behind.close()
    assert reopened(tmp_path / "e")[0] == of([row("first"), rows[1], rows[2]])


async def test_a_disk_that_fails_loses_writes_and_never_what_is_gone(tmp_path: Path, gate: Gate) -> None:
    behind = writer(tmp_path / "e")
    kept, gone = row("kept"), row("gone")
    behind.kept(kept)
    behind.kept(gone)
    assert await behind.flush()
    gate.fails = 3
    behind.kept(row("lost"))
    behind.gone("t", gone.key)
    await behind.invalidate(Selector(tags=frozenset({"none"})), "some-id")
    async with asyncio.timeout(20):
        while gate.fails:
            await asyncio.sleep(0.01)
    await behind.close()
    assert behind.stats.writes_dropped == 1
    file, rows, _ = open_file(tmp_path / "e")
    assert (of(rows), file.invalidations()) == (of([kept]), {"some-id"})
    file.close()


async def test_an_invalidation_is_on_the_disk_when_it_is_answered(tmp_path: Path) -> None:
    behind = writer(tmp_path / "e")
    each = row("a")
    behind.kept(each)
    assert not behind.carried_out("id")
    behind.gone("t", each.key)
    await behind.invalidate(Selector(), "id")
    assert behind.carried_out("id")
    # As another connection would find it after a kill.
    found = behind._file._base.execute("SELECT count(*) FROM entries").fetchone()
    assert found == (0,)
    assert behind._file.invalidations() == {"id"}
    await behind.close()
    again = writer(tmp_path / "e")
    assert again.carried_out("id")
    again.forget("id")
    await again.close()
    once_more = writer(tmp_path / "e")
    assert not once_more.carried_out("id")
    assert once_more._file.seen_ms() > 0
    await once_more.close()


async def test_one_transaction_takes_many_changes(tmp_path: Path, gate: Gate) -> None:
    behind = writer(tmp_path / "e")
    for i in range(3000):
        behind.kept(row(str(i), b"v"))
    assert await behind.flush()
    assert gate.writes < 30
    await behind.close()
    assert len(reopened(tmp_path / "e")[0]) == 3000
