"""Where frames' payloads lie in a segment of shared memory. Pure: it knows numbers, not memory.

Places are taken for frames in the order in which they are sent, and come back in that order, as the receiver's
credits do. The lowest free place wins: while few frames are under way, the same warm pages are used again.
"""

from bisect import insort
from collections import deque

# A cache line, so that no two payloads share one.
ALIGNMENT = 64


class Places:
    """Places in the bytes `begin` to `end` of a segment."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin = begin
        self._end = end
        # Taken ones as (first byte, byte after the last), by position.
        self._taken: list[tuple[int, int]] = []
        # A frame each, oldest first; None for one that lies elsewhere.
        self._frames: deque[tuple[int, int] | None] = deque()

    def __repr__(self) -> str:
        used = sum(end - begin for begin, end in self._taken)
        return f"<Places frames={len(self._frames)} taken={len(self._taken)} bytes={used}>"

    @property
    def frames(self) -> int:
        """Frames under way, those without a place included."""
        return len(self._frames)

    def find(self, length: int) -> int | None:
        """Where `length` bytes would lie now; None when there is no room. Nothing is taken."""
        at = self._begin
        for begin, end in self._taken:
            if begin - at >= length:
                return at
            at = end
        return at if self._end - at >= length else None

    def sent(self, offset: int | None = None, length: int = 0) -> None:
        """A frame goes out: with its payload where `find` said just before, or without a place."""
        if offset is None or not length:
            self._frames.append(None)
            return
        place = (offset, offset + length + -(offset + length) % ALIGNMENT)
        insort(self._taken, place)
        self._frames.append(place)

    def done(self, frames: int) -> None:
        """The receiver is done with the oldest `frames` frames; more than there are is all of them."""
        for _ in range(min(frames, len(self._frames))):
            place = self._frames.popleft()
            if place is not None:
                self._taken.remove(place)
