"""What stands behind the memory: nothing, a file (`file_writer`) or a shared store (`redis_store`)."""

from dataclasses import dataclass
from typing import Protocol

from stagemesh.invalidation import Selector

from .entry_file import Row


@dataclass(slots=True)
class BehindStats:
    """Writes dropped since the start, writes that wait, and entries that came back from behind."""

    writes_dropped: int = 0
    writes_waiting: int = 0
    restored: int = 0


class Behind(Protocol):
    """Used on the event loop; none of its plain methods blocks."""

    name: str
    stats: BehindStats
    answers: bool
    """Whether `find` may know what the memory does not."""

    def kept(self, row: Row) -> None:
        """The memory holds this now."""

    def gone(self, tenant: str, key: bytes) -> None:
        """The memory no longer holds it: its time or its room is over, or it was invalidated."""

    async def find(self, tenant: str, key: bytes) -> Row | None:
        """What lies behind under this key. Never raises."""

    async def invalidate(self, selector: Selector, invalidation: str) -> None:
        """Drop what the selector fits, and remember that this invalidation was carried out."""

    async def drop_stale(self, model_tag: str, revision_tag: str) -> None:
        """Drop what has the first tag without the second; with an empty second all that has the first."""

    def carried_out(self, invalidation: str) -> bool:
        """Whether what lies behind has been through this invalidation."""

    def forget(self, invalidation: str) -> None:
        """It will not be heard of again."""

    async def close(self) -> None:
        """Write what waits, and let go."""


class Nothing:
    """Memory alone."""

    name = "memory"
    answers = False

    def __init__(self) -> None:
        self.stats = BehindStats()

    def kept(self, row: Row) -> None:
        """Nothing to do."""

    def gone(self, tenant: str, key: bytes) -> None:
        """Nothing to do."""

    async def find(self, tenant: str, key: bytes) -> Row | None:
        """Nothing."""
        return None

    async def invalidate(self, selector: Selector, invalidation: str) -> None:
        """Nothing to do."""

    async def drop_stale(self, model_tag: str, revision_tag: str) -> None:
        """Nothing to do."""

    def carried_out(self, invalidation: str) -> bool:
        """Nothing was there before this process: what it hears first is over."""
        return False

    def forget(self, invalidation: str) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""
