"""Segments: made so that nobody else can, opened only as offered, gone when their maker is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stagemesh.services.stage.shared_memory_segment import (
    COOKIE_BYTES,
    HEADER_BYTES,
    SLOTS,
    Segment,
    map_segment,
    sweep,
)

SIZE = 2**20


def offered(segment: Segment) -> tuple[str, int, bytes]:
    return segment.name, segment.nbytes, segment.cookie


def test_what_is_written_is_read_after_the_name_is_gone(tmp_path: Path) -> None:
    segment = Segment(SIZE, tmp_path)
    mapped = map_segment(*offered(segment), tmp_path)
    assert mapped is not None
    view = mapped.memory
    assert view.readonly
    segment.unlink()
    assert list(tmp_path.iterdir()) == []
    assert segment.reserve(HEADER_BYTES + 5)
    segment.write(HEADER_BYTES, memoryview(b"hello"))
    assert bytes(view[HEADER_BYTES : HEADER_BYTES + 5]) == b"hello"
    segment.close()
    segment.close()
    assert bytes(view[HEADER_BYTES : HEADER_BYTES + 5]) == b"hello"  # the reader keeps its mapping


def test_the_receiver_says_what_it_is_done_with(tmp_path: Path) -> None:
    segment = Segment(SIZE, tmp_path)
    mapped = map_segment(*offered(segment), tmp_path)
    assert mapped is not None
    assert not any(segment.is_done(number) for number in range(2 * SLOTS))
    mapped.done(3)
    mapped.done(0)
    assert [number for number in range(2 * SLOTS) if segment.is_done(number)] == [0, 3]
    mapped.done(SLOTS + 3)
    assert [number for number in range(2 * SLOTS) if segment.is_done(number)] == [0, SLOTS + 3]
    segment.close()
    assert not segment.is_done(0)
    mapped.done(1)  # its maker is gone


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        segment = Segment(SIZE, tmp_path)
    finally:
        os.umask(mask)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(segment.name) == len("stagemesh-") + 32
    segment.close()
    assert not path.exists()


def test_memory_is_taken_as_it_is_used_and_never_beyond_the_end(tmp_path: Path) -> None:
    segment = Segment(8 * SIZE, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_blocks * 512 < SIZE
    assert segment.reserve(3 * SIZE)
    assert 3 * SIZE <= path.stat().st_blocks * 512 < 5 * SIZE
    assert not segment.reserve(8 * SIZE + 1)
    with pytest.raises(AssertionError):
        segment.write(6 * SIZE, memoryview(b"x"))
    segment.close()


@pytest.mark.skipif(not os.access("/dev/full", os.F_OK) or os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_full_folder_has_no_memory(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        segment = Segment(16 * SIZE, small)
        assert segment.reserve(SIZE)
        assert not segment.reserve(10 * SIZE)
        with pytest.raises(OSError, match="No space"):
            (small / "filler").write_bytes(bytes(4 * SIZE))
        with pytest.raises(OSError, match="No space"):
            Segment(SIZE, small)
        assert len([name for name in os.listdir(small) if name.startswith("stagemesh-")]) == 1
        segment.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_without_a_folder_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Segment(SIZE, tmp_path / "absent")


@pytest.mark.parametrize(
    "wrong",
    [
        "cookie",
        "short cookie",
        "length",
        "huge",
        "tiny",
        "name",
        "path",
        "mode",
        "link",
        "pipe",
        "folder",
        "gone",
    ],
)
def test_only_what_was_offered_is_mapped(tmp_path: Path, wrong: str) -> None:
    segment = Segment(SIZE, tmp_path)
    name, length, cookie = offered(segment)
    path = tmp_path / name
    match wrong:
        case "cookie":
            cookie = bytes(COOKIE_BYTES)
        case "short cookie":
            cookie = cookie[:4]
        case "length":
            length += 4096
        case "huge":
            length = 2**63
        case "tiny":
            length = HEADER_BYTES
        case "name":
            name = "stagemesh-" + "0" * 32
        case "path":
            name = f"../{tmp_path.name}/{name}"
        case "mode":
            path.chmod(0o644)
        case "link":
            path.rename(tmp_path / "other")
            path.symlink_to(tmp_path / "other")
        case "pipe":
            path.unlink()
            os.mkfifo(path, 0o600)
        case "folder":
            path.unlink()
            path.mkdir(0o600)
        case "gone":
            path.unlink()
    assert map_segment(name, length, cookie, tmp_path) is None
    if wrong == "folder":
        path.rmdir()
    segment.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_file_of_another_user_is_not_mapped(tmp_path: Path) -> None:
    segment = Segment(SIZE, tmp_path)
    os.chown(tmp_path / segment.name, 12345, -1)
    assert map_segment(*offered(segment), tmp_path) is None
    segment.close()


def test_refusals_do_not_name_the_segment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    segment = Segment(SIZE, tmp_path)
    assert segment.name[10:] not in repr(segment)
    map_segment(segment.name, SIZE + 4096, segment.cookie, tmp_path)
    segment.close()
    map_segment(*offered(segment), tmp_path)
    assert len(caplog.records) == 2
    assert segment.name[10:] not in caplog.text


MAKER = """
import sys, time
from pathlib import Path
from stagemesh.services.stage.shared_memory_segment import Segment
segment = Segment(2**20, Path(sys.argv[1]))
print("made", flush=True)
time.sleep(60)
"""


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    mine = Segment(SIZE, tmp_path)
    (tmp_path / "stagemesh-unrelated").write_text("")
    (tmp_path / ("stagemesh-" + "a" * 32)).symlink_to(tmp_path / "stagemesh-unrelated")
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "made\n"
    before = sorted(os.listdir(tmp_path))
    assert sweep(tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == before
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    assert len(os.listdir(tmp_path)) == 4
    assert sweep(tmp_path) == 1
    left = set(os.listdir(tmp_path))
    assert left == {mine.name, "stagemesh-unrelated", "stagemesh-" + "a" * 32}
    mine.close()
    assert sweep(tmp_path / "absent") == 0
