"""Which KV blocks belong to whom, as a pure state machine: reservation, sharing by content, reuse of what was freed.

Blocks of a fixed number of positions, counted references, and lookup by the digest of all tokens up to a block's
end, as in PagedAttention with prefix caching (Kwon et al., SOSP 2023). A freed block that has a digest stays
findable until its room is needed, the longest unused first. Blocks of one reservation lie side by side whenever
there is such a gap, since that is read faster.
"""

from collections import OrderedDict
from collections.abc import Sequence

from .holdings import Holdings

_FREE, _TAKEN = 1, 0


class Blocks:
    """`total` blocks, numbered from 0; `holdings` tells others which digests they can be found by."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._map = bytearray([_FREE]) * total
        self._free = total
        self._references: dict[int, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.holdings = Holdings(self._block_of)
        # Nobody's, but still findable; the longest unused first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Blocks used={self.used} idle={len(self._idle)} free={self._free}>"

    @property
    def used(self) -> int:
        """Blocks that somebody holds; a shared one counts once."""
        return len(self._references)

    @property
    def available(self) -> int:
        """Blocks that can be had now, those that are merely remembered included."""
        return self._free + len(self._idle)

    @property
    def free(self) -> int:
        """Blocks that can be had without forgetting any."""
        return self._free

    def known(self, prefix: Sequence[bytes]) -> int:
        """How many blocks from the start of `prefix` are here."""
        for count, digest in enumerate(prefix):
            if digest not in self._block_of:
                return count
        return len(prefix)

    def take(self, count: int, shared: Sequence[bytes] = ()) -> list[int] | None:
        """Hold `count` blocks: those of the digests in `shared` first, then new ones.

        Returns:
            Their numbers in order; None, and nothing is changed, when a digest is not known or room is missing.
        """
        found = [self._block_of.get(digest) for digest in shared]
        blocks = [block for block in found if block is not None]
        if len(blocks) < len(found) or len(blocks) > count:
            return None
        fresh = count - len(blocks)
        if fresh > self.available - sum(block in self._idle for block in set(blocks)):
            return None
        for block in blocks:
            self._idle.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1
        return blocks + self._fresh(fresh)

    def _fresh(self, count: int) -> list[int]:
        if not count:
            return []
        while self._free < count:
            self._forget(next(iter(self._idle)))
        start = self._map.find(bytes([_FREE]) * count)
        if start >= 0:
            blocks = list(range(start, start + count))
        else:
            blocks, at = [], -1
            for _ in range(count):
                at = self._map.find(_FREE, at + 1)
                blocks.append(at)
        for block in blocks:
            self._map[block] = _TAKEN
            self._references[block] = 1
        self._free -= count
        return blocks

    def _forget(self, block: int) -> None:
        del self._idle[block]
        digest = self._digest_of.pop(block)
        del self._block_of[digest]
        self.holdings.changed(digest)
        self._map[block] = _FREE
        self._free += 1

    def name(self, block: int, digest: bytes) -> None:
        """The block is full and holds what `digest` says; without effect when another block does already."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest
            self.holdings.changed(digest)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back what `take` returned."""
        # The end of a prefix is of no use without its beginning: forget it first.
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            del self._references[block]
            if block in self._digest_of:
                self._idle[block] = None
            else:
                self._map[block] = _FREE
                self._free += 1
