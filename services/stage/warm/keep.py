"""Which loaded partitions stay in memory while nobody asks for them. Pure.

GreedyDual-Size (Cao and Irani, USITS 1997) with frequencies (Cherkasova, "Improving WWW proxies performance with
Greedy-Dual-Size-Frequency", HP Labs 1998): a partition is worth `uses x seconds to load / bytes`, on top of a floor that
rises to the worth of whatever was given up last. So what was not used for long sinks below what came since, and among
equals the one goes that is loaded again soonest for the room that it takes. Uses fade by half in `HALF_LIFE_S`, which
makes them an estimate of how likely the next one is.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

HALF_LIFE_S = 3600.0
# Partitions whose uses are remembered, kept or not.
_REMEMBERED = 1024


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    nbytes: int
    cost_s: float
    # Floor at the time of its last use, and its worth above that.
    worth: float


class Keep(Generic[K, V]):
    """Values by key, of `limit` bytes at most.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: dict[K, _Entry[V]] = {}
        self._floor = 0.0
        # Uses that have not faded, and when that was; the least recently used first.
        self._uses: dict[K, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"<Keep {len(self._entries)} of {self.bytes}/{self.limit} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def sizes(self) -> dict[K, int]:
        """Bytes of each."""
        return {key: entry.nbytes for key, entry in self._entries.items()}

    def put(self, key: K, value: V, nbytes: int, cost_s: float, now: float) -> list[V]:
        """Keep a value that was just used; returns what is given up, which may be that very value.

        Args:
            key: what it is; another value of that key is given up.
            value: what is kept.
            nbytes: memory that it takes.
            cost_s: seconds that it takes to have it again.
            now: seconds on any clock that does not go back.
        """
        gone = []
        if (old := self.take(key)) is not None:
            gone.append(old)
        uses = self._used(key, now)
        if nbytes > self.limit:
            return [*gone, value]
        worth = self._floor + uses * max(cost_s, 1e-6) / max(nbytes, 1)
        self._entries[key] = _Entry(value, nbytes, cost_s, worth)
        self.bytes += nbytes
        return gone + self.shrink(self.limit)

    def take(self, key: K) -> V | None:
        """Give out what is kept under that key; it is kept no longer."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self.bytes -= entry.nbytes
        return entry.value

    def shrink(self, most: int) -> list[V]:
        """Give up what is worth least until at most `most` bytes are kept; returns that, first the least."""
        gone = []
        while self.bytes > max(most, 0):
            key = min(self._entries, key=lambda each: self._entries[each].worth)
            self._floor = max(self._floor, self._entries[key].worth)
            value = self.take(key)
            assert value is not None
            gone.append(value)
        return gone

    def _used(self, key: K, now: float) -> float:
        uses, since = self._uses.pop(key, (0.0, now))
        uses = 1.0 + uses * 0.5 ** (max(now - since, 0.0) / HALF_LIFE_S)
        self._uses[key] = uses, now
        if len(self._uses) > _REMEMBERED:
            del self._uses[next(iter(self._uses))]
        return uses
