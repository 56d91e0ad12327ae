"""The file: what was written is there, and what is damaged in any way is not believed."""

import hashlib
import logging
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stagemesh.services.cache import entry_file
from stagemesh.services.cache.entry_file import EntryFile, Row, open_file

from stagemesh.errors import ConfigError

Held = dict[tuple[str, bytes], Row]


def row(name: str, value: bytes = b"answer", tenant: str = "t", **extra: object) -> Row:
    key = hashlib.sha256(name.encode()).digest()
    digest = hashlib.sha256(key + value).digest()
    settings_ = {"tags": ("model:x", "tag:ü\n"), "stored_ms": 5, "expires_ms": 9, **extra}
    return Row(tenant, key, value, digest, **settings_)  # type: ignore[arg-type]


def of(rows: list[Row]) -> Held:
    return {(each.tenant, each.key): each for each in rows}


def reopened(path: Path) -> tuple[Held, bool]:
    file, rows, set_aside = open_file(path)
    file.close()
    assert len(of(rows)) == len(rows)
    return of(rows), set_aside


BATCHES = st.lists(
    st.tuples(
        st.lists(
            st.builds(
                row,
                st.sampled_from("abcdef"),
                st.binary(max_size=300),
                st.sampled_from(["t", "u"]),
                tags=st.lists(st.sampled_from(["model:x", "q"]), unique=True).map(tuple),
                stored_ms=st.integers(0, 2**60),
            ),
            max_size=5,
        ),
        st.lists(st.tuples(st.sampled_from(["t", "u"]), st.sampled_from("abcdef")), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_what_was_written_is_there(
    tmp_path: Path, batches: list[tuple[list[Row], list[tuple[str, str]]]]
) -> None:
    path = tmp_path / "entries"
    path.unlink(missing_ok=True)
    held: Held = {}
    file, rows, _ = open_file(path)
    assert rows == []
    for number, (written, gone) in enumerate(batches):
        keys = [(tenant, hashlib.sha256(name.encode()).digest()) for tenant, name in gone]
        written = list(of(written).values())
        file.write(written, keys, [f"id{number}"], seen_ms=number + 1)
        for key in keys:
            held.pop(key, None)
        held.update(of(written))
    assert file.invalidations() == {f"id{number}" for number in range(len(batches))}
    assert file.seen_ms() == len(batches)
    file.close()
    assert reopened(path) == (held, False)


@pytest.fixture
def crashed(tmp_path: Path) -> tuple[Path, list[Held]]:
    """A folder as a killed process leaves it: a file, its log, and what was held after each transaction."""
    folder = tmp_path / "crashed"
    folder.mkdir()
    file, _, _ = open_file(tmp_path / "entries")
    states: list[Held] = [{}]
    for number in range(5):
        rows = [row(f"{number}.{i}", bytes([number]) * 700) for i in range(3)]
        gone = [("t", rows[0].key)] if number % 2 else [next(iter(states[-1]), ("t", b""))]
        file.write(rows, gone)
        state = {key: kept for key, kept in states[-1].items() if key not in gone} | of(rows)
        states.append(state)
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"entries{suffix}", folder / f"entries{suffix}")
    file.close()
    return folder, states


def test_a_log_cut_anywhere_gives_the_state_after_some_transaction(
    crashed: tuple[Path, list[Held]], tmp_path: Path
) -> None:
    folder, states = crashed
    whole = (folder / "entries-wal").read_bytes()
    frame = 24 + 4096
    offsets = {*range(0, len(whole), 2003), len(whole)}
    offsets |= {32 + n * frame + d for n in range(len(whole) // frame + 1) for d in (-1, 0)}
    found = set()
    for offset in sorted(each for each in offsets if each <= len(whole)):
        copy = tmp_path / "cut"
        shutil.copytree(folder, copy)
        (copy / "entries-wal").write_bytes(whole[:offset])
        held, set_aside = reopened(copy / "entries")
        assert not set_aside
        assert held in states, offset
        found.add(states.index(held))
        shutil.rmtree(copy)
    assert found == set(range(len(states)))


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_file_is_whole_or_set_aside(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    path = tmp_path / "entries"
    file, _, _ = open_file(path)
    rows = [row(f"{i}", bytes([i]) * 900) for i in range(9)]
    file.write(rows)
    file.close()
    whole = path.read_bytes()
    aside = 0
    for offset in range(1, len(whole), 499):
        path.write_bytes(
            whole[:offset]
            if harm == "cut"
            else whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :]
        )
        held, set_aside = reopened(path)
        assert held in ({}, of(rows)), offset
        aside += set_aside
    kept = list(tmp_path.glob("entries.corrupt-*"))
    assert len(kept) == aside > 20


def test_a_row_that_was_changed_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "entries"
    for change in (
        "tenant = 'u'",
        "key = x'00'",
        "value = value || x'00'",
        "digest = x'00'",
        "tags = '[]'",
        "tags = 7",
        "stored_ms = 6",
        "expires_ms = 10",
    ):
        file, _, _ = open_file(path)
        file.write([row("a"), row("b")])
        file._base.execute(f"UPDATE entries SET {change} WHERE id = 1")
        file.close()
        caplog.clear()
        assert reopened(path) == ({}, True), change
        assert "set aside" in caplog.text
        assert str(tmp_path) not in caplog.text.split("cache.file_corrupt")[0]


def test_a_file_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "entries"
    file, _, _ = open_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="another process has it"):
        open_file(path)
    file.close()
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE accounts (name)")
    other.close()
    with pytest.raises(ConfigError, match="something else"):
        open_file(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="directory"):
        open_file(tmp_path / "folder")


def test_many_rows_go_in_few_statements(tmp_path: Path) -> None:
    file = EntryFile(tmp_path / "entries")
    statements: list[str] = []
    file._base.set_trace_callback(statements.append)
    rows = [row(str(i), b"") for i in range(1000)]
    file.write(rows, [(each.tenant, each.key) for each in rows])
    assert sum("REPLACE INTO entries" in each for each in statements) == 1000 // entry_file._ROWS
    assert len(list(file.read())) == 1000
    file.close()
