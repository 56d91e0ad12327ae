"""What a mesh of this process may have left behind: processes and shared-memory segments."""

from dataclasses import dataclass
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_PREFIX = "stagemesh"


def segments() -> frozenset[str]:
    """Names of the shared-memory segments of any mesh on this machine."""
    if not _SHARED_MEMORY.is_dir():
        return frozenset()
    return frozenset(path.name for path in _SHARED_MEMORY.glob(f"{_PREFIX}*"))


def children() -> frozenset[int]:
    """Process ids of everything below this process."""
    return frozenset(child.pid for child in psutil.Process().children(recursive=True))


@dataclass(frozen=True)
class Leftovers:
    """Take it before a mesh starts and ask after it has stopped."""

    segments: frozenset[str]
    children: frozenset[int]

    @classmethod
    def before(cls) -> "Leftovers":
        """What is there now and so is not the mesh's."""
        return cls(segments(), children())

    def found(self) -> list[str]:
        """What is there now and was not before, a word each; empty when all is clean."""
        left = [f"process {pid}" for pid in sorted(children() - self.children)]
        return left + [f"segment {name}" for name in sorted(segments() - self.segments)]
