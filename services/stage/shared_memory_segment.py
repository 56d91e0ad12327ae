"""Segments of shared memory: files without a name in `/dev/shm`, mapped by the two ends of a link.

The sender makes one under a random name, the receiver maps it, and the name is gone before the first frame: when
either end is killed, nothing stays. Only a sender killed between the two leaves a name; `sweep` removes those. Whoever
opens a segment by name checks that it is what the sender said: its owner, mode, size and the cookie at its start.
Names are never logged nor put into errors.
"""

import contextlib
import errno
import fcntl
import hmac
import logging
import mmap
import os
import re
import secrets
import stat
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108  random names, O_EXCL, mode 0600
_PREFIX = "stagemesh-"
_NAME = re.compile(_PREFIX + r"[0-9a-f]{32}")
_MODE = 0o600
COOKIE_BYTES = 32
# The first page holds the cookie, and a slot for each payload under way: its number + 1 once the receiver is done
# with it. Payloads come behind.
HEADER_BYTES = 4096
SLOTS = 256
_SLOTS_AT = 2048
MAX_SEGMENT_BYTES = 2**36
# Memory is asked for in steps of this many bytes, when a payload first reaches there.
_STEP_BYTES = 2**20


class Segment:
    """A segment that this process has made and writes to.

    Args:
        nbytes: its size; memory is taken only as far as it is used.
        folder: where shared memory is.

    Raises:
        OSError: there is no shared memory here, or none is left.
    """

    def __init__(self, nbytes: int, folder: Path = FOLDER) -> None:
        self.name = _PREFIX + secrets.token_hex(16)
        self.cookie = secrets.token_bytes(COOKIE_BYTES)
        self.nbytes = nbytes
        self._path = folder / self.name
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, _MODE)
        try:
            os.fchmod(self._fd, _MODE)  # whatever the umask is
            # Held as long as this process lives: a segment that can be locked is nobody's.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, nbytes)
            self._reserved = 0
            if not self.reserve(HEADER_BYTES):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._map = mmap.mmap(self._fd, nbytes)
            self._map[:COOKIE_BYTES] = self.cookie
            self._slots: np.ndarray | None = _slots(self._map)
        except BaseException:
            self.unlink()
            os.close(self._fd)
            raise
        self._bytes: np.ndarray | None = np.frombuffer(self._map, np.uint8)

    def __repr__(self) -> str:
        return f"<Segment bytes={self.nbytes} reserved={self._reserved}>"

    def reserve(self, end: int) -> bool:
        """Have memory behind the bytes up to `end`; False when the system has none left (or `end` is outside).

        A write to a page that cannot be had would kill the process.
        """
        if end <= self._reserved:
            return True
        if end > self.nbytes:
            return False
        stop = min(self.nbytes, end + -end % _STEP_BYTES) if self._reserved else end
        try:
            os.posix_fallocate(self._fd, self._reserved, stop - self._reserved)
        except OSError:
            return False
        self._reserved = stop
        return True

    def write(self, offset: int, data: memoryview) -> None:
        """Copy `data` to `offset`, which is reserved; other threads run meanwhile."""
        assert self._bytes is not None
        assert offset + data.nbytes <= self._reserved
        self._bytes[offset : offset + data.nbytes] = np.frombuffer(data, np.uint8)

    def is_done(self, number: int) -> bool:
        """Whether the receiver is done with that payload."""
        return self._slots is not None and int(self._slots[number % SLOTS]) == number + 1

    def unlink(self) -> None:
        """Remove the name; both ends keep the memory. A second call does nothing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Remove the name and let go of the memory. A second call does nothing."""
        if self._fd >= 0:
            self.unlink()
            os.close(self._fd)
            self._fd = -1
            self._reserved = 0
            self._bytes = self._slots = None
            self._map.close()


def _slots(memory: mmap.mmap) -> np.ndarray:
    return np.frombuffer(memory, np.uint64, SLOTS, _SLOTS_AT)


class MappedSegment:
    """Somebody's segment: `memory` to be read only, and the slots to say what one is done with.

    The mapping itself can be written to: a kernel that works in place must not kill the process.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self.memory = memoryview(mapping).toreadonly()
        self._slots = _slots(mapping)

    def done(self, number: int) -> None:
        """Say that the payload with that number is no longer used; from any thread."""
        self._slots[number % SLOTS] = number + 1


def map_segment(name: str, length: int, cookie: bytes, folder: Path = FOLDER) -> MappedSegment | None:
    """Map somebody's segment; None, and why in the log, when it is not here or not what it should be.

    The last user of a view of it unmaps it.
    """
    if (
        not _NAME.fullmatch(name)
        or len(cookie) != COOKIE_BYTES
        or not HEADER_BYTES < length <= MAX_SEGMENT_BYTES
    ):
        log.info("shared_memory.refused: not an offer of ours")
        return None
    try:
        # O_NONBLOCK: a pipe of that name must not hold us.
        fd = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        log.info("shared_memory.refused: %s", os.strerror(error.errno or 0))
        return None
    try:
        found = os.fstat(fd)
        if (
            not stat.S_ISREG(found.st_mode)
            or stat.S_IMODE(found.st_mode) != _MODE
            or found.st_uid != os.geteuid()
            or found.st_size != length
        ):
            log.warning("shared_memory.refused: owner, mode or size is not what it should be")
            return None
        mapping = mmap.mmap(fd, length)
    except (OSError, ValueError):
        log.warning("shared_memory.refused: it cannot be mapped")
        return None
    finally:
        os.close(fd)
    if not hmac.compare_digest(mapping[:COOKIE_BYTES], cookie):
        log.warning("shared_memory.refused: the cookie differs")
        return None
    return MappedSegment(mapping)


def sweep(folder: Path = FOLDER) -> int:
    """Remove segments of this user that no living process holds; how many."""
    removed = 0
    try:
        names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
    except OSError:
        return 0
    for name in names:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)
                removed += 1
        except OSError:
            pass  # its maker lives, or it went meanwhile
        finally:
            os.close(fd)
    if removed:
        log.info("shared_memory.swept segments=%d", removed)
    return removed
