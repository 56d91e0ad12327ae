"""Where frames' payloads lie in a segment of shared memory. Pure: it knows numbers, not memory.

Each payload has a number, counted by both ends of a stream, and its place is free again when the receiver says so by
that number, in whatever order. The lowest free place wins: while few frames are under way, the same warm pages are
used again.
"""

from bisect import insort
from collections.abc import Sequence

# A cache line, so that no two payloads share one.
ALIGNMENT = 64


class Places:
    """Places in the bytes `begin` to `end` of a segment, for at most `slots` payloads at once.

    The receiver's word about payload `n` is in slot `n % slots`, so a slot is not used again before it came.
    """

    def __init__(self, begin: int, end: int, slots: int) -> None:
        self._begin = begin
        self._end = end
        self._slots = slots
        self._next = 0
        # Taken ones as (first byte, byte after the last), by position; and by number.
        self._taken: list[tuple[int, int]] = []
        self._by_number: dict[int, tuple[int, int]] = {}

    def __repr__(self) -> str:
        used = sum(end - begin for begin, end in self._taken)
        return f"<Places next={self._next} taken={len(self._taken)} bytes={used}>"

    @property
    def taken(self) -> Sequence[int]:
        """Numbers of the payloads that have a place, oldest first."""
        return list(self._by_number)

    @property
    def capacity(self) -> int:
        """Bytes in all."""
        return self._end - self._begin

    def find(self, length: int) -> int | None:
        """Where `length` bytes would lie now; None when there is no room. Nothing is taken."""
        if self._next - self._slots in self._by_number:
            return None
        at = self._begin
        for begin, end in self._taken:
            if begin - at >= length:
                return at
            at = end
        return at if self._end - at >= length else None

    def take(self, offset: int, length: int) -> int:
        """Take the place that `find` gave just before; the payload's number."""
        place = (offset, offset + length + -(offset + length) % ALIGNMENT)
        insort(self._taken, place)
        number = self._next
        self._by_number[number] = place
        self._next += 1
        return number

    def free(self, number: int) -> None:
        """The receiver is done with that payload."""
        self._taken.remove(self._by_number.pop(number))
