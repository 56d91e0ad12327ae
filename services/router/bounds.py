"""Whether small tensors of ids lie within a vocabulary, without numpy: its code is cold where it is called once a request. Pure."""

from functools import lru_cache

MOST_BYTES = 2**13
"""Beyond, numpy is faster, cold or not: of 4 KiB this takes 4 us, of 16 KiB 13."""


def surely_below(data: bytes, item_bytes: int, bound: int) -> bool:
    """Whether all little-endian integers of so many bytes in `data` are known to be at least 0 and below `bound`.

    False also where it takes another look: beyond `MOST_BYTES`, and for unsigned integers with their highest bit set.
    All of them are lanes of one long integer, to which is added what takes a lane of `bound` to its highest bit (Lamport,
    "Multiple byte processing with full-word instructions", 1975).
    """
    if len(data) > MOST_BYTES:
        return False
    highest, missing = _lanes(len(data) // item_bytes, item_bytes, bound)
    lanes = int.from_bytes(data, "little")
    # Where no lane has its highest bit, none can carry into the next.
    return not (lanes | (lanes + missing)) & highest


@lru_cache(maxsize=64)
def _lanes(count: int, item_bytes: int, bound: int) -> tuple[int, int]:
    """Every lane's highest bit, and what `bound` lacks to it."""
    ones = int.from_bytes((b"\1" + bytes(item_bytes - 1)) * count, "little")
    highest = 1 << (8 * item_bytes - 1)
    return ones * highest, ones * max(highest - bound, 0)
