"""The keys and values of sessions: blocks of one arena per layer, within a budget reserved before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from stagemesh.errors import ResourceExhausted
from stagemesh.prefix import BLOCK

from .blocks import Blocks


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What a partition keeps of each position.

    Attributes:
        layers: that have keys and values in an arena; the rest says how large they are.
        kv_heads: see layers.
        head_dim: see layers.
        dtype: see layers.
        device: see layers.
        own_token_bytes: for a session's state in the model library's own cache, at most that many bytes for each
            position instead.
        session_bytes: and at most that many for the session besides (recurrent states, windows).
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    own_token_bytes: int = 0
    session_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of one position: keys and values on every layer."""
        return self.own_token_bytes or 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def blocks(self, positions: int) -> int:
        """Blocks that a session of that many positions takes."""
        besides = -(-self.session_bytes // (BLOCK * self.token_bytes)) if self.session_bytes else 0
        return -(-positions // BLOCK) + besides

    def sequence_bytes(self, positions: int) -> int:
        """Bytes of those blocks."""
        return self.blocks(positions) * BLOCK * self.token_bytes


class PrefixMissing(ResourceExhausted):
    """A block that the session was to begin with is no longer here; the first `kept` positions still are."""

    def __init__(self, message: str, kept: int = 0) -> None:
        super().__init__(message)
        self.kept = kept


class OwnState(Protocol):
    """A session's state in the model library's own cache."""

    def cut(self, position: int) -> bool:
        """Forget what lies at `position` and after it; False when that cannot be done."""


class SessionKV:
    """What one session holds on one partition.

    Attributes:
        pool: whose blocks they are.
        blocks: their numbers, in the order of positions.
        capacity: positions that may be written.
        length: positions that have been written, shared ones included.
        own: the model library's own cache instead, on the path for architectures that need it.
    """

    def __init__(
        self, pool: "KVPool", blocks: list[int], capacity: int, length: int, prefix: Sequence[bytes]
    ) -> None:
        self.pool = pool
        self.blocks = blocks
        self.capacity = capacity
        self.length = length
        self.own: OwnState | None = None
        self.table = torch.tensor(blocks, dtype=torch.int32)
        first = blocks[0] if blocks else 0
        # First position when the blocks lie side by side, else None.
        self._start = first * BLOCK if blocks == list(range(first, first + len(blocks))) else None
        self._prefix = prefix
        self._named = length // BLOCK

    def __repr__(self) -> str:
        return f"<SessionKV {self.length}/{self.capacity}>"

    def slots(self, position: int, count: int) -> list[int]:
        """Where in the arena the positions `position` .. `position + count` lie."""
        if self._start is not None:
            return list(range(self._start + position, self._start + position + count))
        return [self.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(position, position + count)]

    def read(self, arena: torch.Tensor, end: int) -> torch.Tensor:
        """The first `end` positions `[end, kv_heads, head_dim]` of an arena; copied only from scattered blocks."""
        if self._start is not None:
            return arena[self._start : self._start + end]
        count = -(-end // BLOCK)
        blocks = arena.view(-1, BLOCK, *arena.shape[1:])
        return blocks[self.table[:count].to(arena.device)].flatten(0, 1)[:end]

    def name_blocks(self) -> None:
        """Make the prompt's blocks that are full by now findable for other sessions."""
        full = min(self.length // BLOCK, len(self._prefix))
        for index in range(self._named, full):
            self.pool.blocks.name(self.blocks[index], self._prefix[index])
        self._named = max(self._named, full)


class KVPool:
    """A budget of bytes. A session reserves its whole sequence before it runs.

    Memory is asked for when a layer is first written; on a CPU the system gives pages as they are touched, so the
    pool takes what its fullest moment needed.

    Args:
        budget_bytes: for all sessions together.
        layout: of one position.
    """

    def __init__(self, budget_bytes: int, layout: KVLayout) -> None:
        self.budget_bytes = budget_bytes
        self.layout = layout
        self.block_bytes = BLOCK * layout.token_bytes
        # A partition that keeps nothing has blocks of no bytes, and no sessions that ask for them.
        self.blocks = Blocks(budget_bytes // self.block_bytes if self.block_bytes else 0)
        self._arenas: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layout.layers

    def __repr__(self) -> str:
        return f"<KVPool {self.used_bytes}/{self.budget_bytes} bytes {self.blocks!r}>"

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that sessions hold."""
        return self.blocks.used * self.block_bytes

    def arena(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[positions, kv_heads, head_dim]` each."""
        found = self._arenas[layer]
        if found is None:
            shape = (self.blocks.total * BLOCK, self.layout.kv_heads, self.layout.head_dim)
            found = self._arenas[layer] = (self._empty(shape), self._empty(shape))
        return found

    def _empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=self.layout.dtype, device=self.layout.device)

    def reusable(self, prefix: Sequence[bytes], tokens: int) -> int:
        """How many of a prompt's first positions are here; its last token is always computed."""
        return self.blocks.known(prefix[: max(0, tokens - 1) // BLOCK]) * BLOCK

    def reserve(self, capacity: int, prefix: Sequence[bytes] = (), reused: int = 0) -> SessionKV:
        """Reserve `capacity` positions.

        Args:
            capacity: positions.
            prefix: digests of the prompt's full blocks, so that others can find them once they are written.
            reused: positions at the start, whole blocks, that are taken over from earlier sessions.

        Raises:
            PrefixMissing: a block to take over is not here any more.
            ResourceExhausted: the budget has no room now.
        """
        shared = prefix[: reused // BLOCK]
        known = self.blocks.known(shared)
        if len(shared) * BLOCK != reused or known < len(shared):
            raise PrefixMissing(
                "KV memory: the beginning of the session is not kept here any more", known * BLOCK
            )
        blocks = self.blocks.take(self.layout.blocks(capacity), shared)
        if blocks is None:
            needed = self.layout.sequence_bytes(capacity)
            raise ResourceExhausted(
                f"KV memory: {needed} bytes needed, {self.blocks.available * self.block_bytes} of "
                f"{self.budget_bytes} free",
                retry_after_s=1.0,
            )
        return SessionKV(self, blocks, capacity, reused, prefix)

    def release(self, kv: SessionKV) -> None:
        """Give back what `reserve` took.

        A pass of the session that is still queued writes to its old blocks before any pass of a new holder does:
        passes run in the order in which they were queued.
        """
        self.blocks.release(kv.blocks)


def rewind(kv: SessionKV, position: int, *, busy: bool) -> bool:
    """Go back to `position`: what lies there and after it will be written again.

    Args:
        kv: of a session.
        position: at most what it has been told of.
        busy: whether a pass of the session is queued or runs.

    Returns:
        False when a state of the model library's own kind cannot go back, or not now.
    """
    if kv.own is None:
        kv.length = min(kv.length, position)  # blocks are addressed by position
        return True
    if kv.length == position and not busy:
        return True
    return not busy and kv.length > position and kv.own.cut(position)
