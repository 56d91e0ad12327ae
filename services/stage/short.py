"""Which passes are short enough to run on the event loop's own thread, learned from how long they took. Pure.

Waking another thread and being woken by it costs more than a short pass; a long pass on the loop's thread would
hold up every stream of the process.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

# A pass that takes longer than LONG_MS is not short; to be found short it must stay below SHORT_MS.
SHORT_MS = 0.8
LONG_MS = 1.0
# Passes of a size in a row that must be short before one runs on the loop; doubled each time that was wrong.
PROOF = 4
MAX_PROOF = 64
# One long pass may be the machine's fault; two among that many are the size's own.
MEMORY = 8
# So many short ones in a row, and what was wrong before is forgotten.
FORGIVEN = 256


# Rows of a pass, and the positions that they attend to, each as its number of bits.
Size = tuple[int, int]


class _Rows(Protocol):
    @property
    def rows(self) -> int: ...
    @property
    def position(self) -> int: ...


def size_of(segments: Iterable[_Rows]) -> Size:
    """How large a pass is: its rows and the positions that they attend to, each as its number of bits."""
    rows = positions = 0
    for segment in segments:
        rows += segment.rows
        positions += segment.position
    return rows.bit_length(), (positions + rows).bit_length()


@dataclass(slots=True)
class _Size:
    """What is known of passes of one size."""

    on_loop: bool = False
    # Short ones since the last long one.
    streak: int = 0
    # How many of them it takes.
    proof: int = PROOF


class ShortPasses:
    """Remembers each size for itself: a long prompt's chunk says nothing about a decode step."""

    def __init__(self) -> None:
        self._sizes: dict[Size, _Size] = {}

    def __repr__(self) -> str:
        return (
            f"<ShortPasses {sum(size.on_loop for size in self._sizes.values())} of {len(self._sizes)} sizes>"
        )

    def allow(self, size: Size) -> bool:
        """Whether a pass of this size may run on the loop."""
        known = self._sizes.get(size)
        return known is not None and known.on_loop

    def observe(self, size: Size, ms: float) -> None:
        """A pass of this size took `ms`, wherever it ran."""
        known = self._sizes.get(size)
        if known is None:
            known = self._sizes[size] = _Size()
        if ms <= (LONG_MS if known.on_loop else SHORT_MS):
            known.streak += 1
            known.on_loop = known.on_loop or known.streak >= known.proof
            if known.streak >= FORGIVEN:
                known.proof = PROOF
            return
        if known.on_loop and known.streak < MEMORY:
            known.on_loop = False
            known.proof = min(2 * known.proof, MAX_PROOF)
        known.streak = 0
