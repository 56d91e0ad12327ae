"""What a replica has sent of its sessions, kept so that a lost next replica can be built again. Pure.

For every position of a session the activations that crossed the boundary, in the bytes in which they crossed it. A
position costs a row: of a Llama with 8 B parameters 8 KiB, about a quarter of what its keys and values take on a stage
of eight layers. Full blocks of a prompt lie in a table by their digest, like KV blocks do: a session that begins
with positions that an earlier one left has sent nothing of them, and still has them here.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from stagemesh.prefix import BLOCK
from stagemesh.tensor import TensorView
from stagemesh.v1.tensor_pb2 import Tensor

# Rows of a frame when a journal is replayed.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a row of a tensor is."""

    dtype: str
    shape: tuple[int, ...]
    row_bytes: int


@dataclass(slots=True, eq=False)
class _Block:
    """Rows of one full block of a prompt, by tensor, and the sessions that need it."""

    rows: dict[str, bytes]
    holders: int = 0

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.rows.values()))


@dataclass(slots=True, eq=False)
class Journal:
    """Of one session: blocks of its prompt from `start` on, then rows of its own.

    Attributes:
        start: the first position in it.
        end: one past the last.
    """

    start: int
    prompt: Sequence[bytes]
    end: int = 0
    shared: list[bytes] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)
    rows: dict[str, bytearray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Journal {self.start}..{self.end} shared={len(self.blocks)} own={self.own_bytes}>"

    @property
    def own_bytes(self) -> int:
        """Bytes that no other session shares."""
        return sum(map(len, self.rows.values()))

    @property
    def own_start(self) -> int:
        """The first position after the blocks."""
        return self.start + BLOCK * len(self.blocks)


class Journals:
    """Those of one replica, within a budget of bytes.

    A session that would grow beyond the budget loses its journal: part of one is worth nothing, and dropping another
    one's would only move the loss. Blocks that no session needs go first.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.dropped = 0
        self._told = 0
        self._of: dict[int, Journal] = {}
        self._blocks: dict[bytes, _Block] = {}
        # Blocks without a holder, the longest unused first.
        self._unused: OrderedDict[bytes, None] = OrderedDict()
        # The same for all sessions of a replica: activations have the empty name.
        self._layouts: dict[str, _Layout] = {}

    def __repr__(self) -> str:
        return (
            f"<Journals {len(self._of)} blocks={len(self._blocks)} "
            f"{self.used_bytes}/{self.budget_bytes} bytes dropped={self.dropped}>"
        )

    @property
    def sessions(self) -> int:
        """Sessions with a journal."""
        return len(self._of)

    @property
    def idle_bytes(self) -> int:
        """Bytes of blocks that no session needs now; they go first."""
        return sum(self._blocks[digest].nbytes for digest in self._unused)

    def open(self, session: int, prompt: Sequence[bytes] = (), reused: int = 0) -> None:
        """Begin the journal of a session, in place of an older one.

        Args:
            session: its id.
            prompt: digests of the full blocks of its prompt.
            reused: positions at the start that it will not send, whole blocks.
        """
        self.forget(session)
        if not self.budget_bytes:
            return
        known = list(prompt[: reused // BLOCK])
        if len(known) * BLOCK != reused or any(digest not in self._blocks for digest in known):
            self._of[session] = Journal(reused, prompt, reused)
            return
        journal = self._of[session] = Journal(0, prompt, reused)
        for digest in known:
            self._share(journal, digest, self._blocks[digest])

    def get(self, session: int) -> Journal | None:
        """None when it was dropped, or never begun."""
        return self._of.get(session)

    def add(
        self, session: int, position: int, first: int, count: int, tensor: TensorView, sides: Iterable[Tensor]
    ) -> None:
        """Take what is sent of a session.

        Args:
            session: its id; unknown ones are ignored.
            position: of the first row. What was kept from there on is replaced.
            first: where its rows begin in the tensors.
            count: how many.
            tensor: activations, `[rows, ...]`.
            sides: what crosses with them, `[rows, ...]` each.
        """
        journal = self._of.get(session)
        if journal is None:
            return
        if position < journal.end:
            self.cut(session, position)
        if position != journal.end:
            return self._drop(session)
        self._append(journal, "", tensor.dtype, tensor.shape, tensor.data, first, count)
        for side in sides:
            self._append(journal, side.name, side.dtype, side.shape, side.data, first, count)
        journal.end += count
        if journal.own_start < BLOCK * len(journal.prompt):
            self._publish(journal)
        self._fit(session)

    def cut(self, session: int, end: int) -> None:
        """The session goes on at `end`: what lies there and after it will be sent again."""
        journal = self._of.get(session)
        if journal is None or end >= journal.end:
            return
        end = max(end, journal.start)
        kept = None
        while journal.own_start > end:
            kept = journal.blocks[-1]
            self._give_back(journal)
        if kept is not None:  # of the block that `end` lies in only the beginning
            self.used_bytes -= journal.own_bytes
            journal.rows = {name: bytearray(rows) for name, rows in kept.rows.items()}
            self.used_bytes += journal.own_bytes
        for name, rows in journal.rows.items():
            size = (end - journal.own_start) * self._layouts[name].row_bytes
            self.used_bytes -= len(rows) - size
            del rows[size:]
        journal.end = end

    def chunks(
        self, session: int, end: int, first: int | None = None
    ) -> Iterator[tuple[int, int, TensorView, list[Tensor]]]:
        """Positions of a journal as frames take them: position, count, activations and sides.

        Args:
            session: one that has a journal.
            end: one past the last, which is in the journal.
            first: the first; all of them from the start when None. A copy is made, since the journal may grow meanwhile.
        """
        journal = self._of[session]
        whole = {
            name: memoryview(b"".join([*(block.rows[name] for block in journal.blocks), rows]))
            for name, rows in journal.rows.items()
        }
        start = journal.start
        for position in range(start if first is None else first, end, CHUNK):
            at, count = position - start, min(CHUNK, end - position)
            parts = {
                name: data[at * layout.row_bytes : (at + count) * layout.row_bytes]
                for name, data in whole.items()
                for layout in [self._layouts[name]]
            }
            hidden = self._layouts[""]
            sides = [
                Tensor(name=name, dtype=layout.dtype, shape=(count, *layout.shape), data=bytes(parts[name]))
                for name, layout in self._layouts.items()
                if name and name in parts
            ]
            yield position, count, TensorView(hidden.dtype, (count, *hidden.shape), parts[""]), sides

    def forget(self, session: int) -> None:
        """The session is over; blocks of its prompt stay while there is room."""
        journal = self._of.pop(session, None)
        if journal is not None:
            self.used_bytes -= journal.own_bytes
            while journal.blocks:
                self._give_back(journal)

    def take_dropped(self) -> int:
        """How many were dropped since this was last asked."""
        dropped, self._told = self.dropped - self._told, self.dropped
        return dropped

    def _append(
        self,
        journal: Journal,
        name: str,
        dtype: str,
        shape: Sequence[int],
        data: bytes | memoryview,
        first: int,
        count: int,
    ) -> None:
        layout = self._layouts.get(name)
        if layout is None:
            layout = self._layouts[name] = _Layout(dtype, tuple(shape[1:]), len(data) // shape[0])
        rows = journal.rows.get(name)
        if rows is None:
            rows = journal.rows[name] = bytearray()
        rows += data[first * layout.row_bytes : (first + count) * layout.row_bytes]
        self.used_bytes += count * layout.row_bytes

    def _publish(self, journal: Journal) -> None:
        """Move the prompt's blocks that are full by now into the table."""
        taken = 0
        while (index := journal.own_start // BLOCK) < len(journal.prompt):
            if journal.own_start % BLOCK or journal.own_start + BLOCK > journal.end:
                break
            digest = journal.prompt[index]
            block = self._blocks.get(digest)
            if block is None:
                block = self._blocks[digest] = _Block(
                    {name: bytes(self._part(name, rows, taken)) for name, rows in journal.rows.items()}
                )
                self.used_bytes += block.nbytes
            taken += 1
            self._share(journal, digest, block)
        for name, rows in journal.rows.items() if taken else ():
            size = taken * BLOCK * self._layouts[name].row_bytes
            self.used_bytes -= size
            del rows[:size]

    def _part(self, name: str, rows: bytearray, index: int) -> bytearray:
        size = BLOCK * self._layouts[name].row_bytes
        return rows[index * size : (index + 1) * size]

    def _share(self, journal: Journal, digest: bytes, block: _Block) -> None:
        journal.shared.append(digest)
        journal.blocks.append(block)
        block.holders += 1
        self._unused.pop(digest, None)
        for name in block.rows:
            journal.rows.setdefault(name, bytearray())

    def _give_back(self, journal: Journal) -> None:
        digest, block = journal.shared.pop(), journal.blocks.pop()
        block.holders -= 1
        if not block.holders:
            self._unused[digest] = None

    def _fit(self, session: int) -> None:
        self._evict()
        if self.used_bytes > self.budget_bytes:
            self._drop(session)
            self._evict()

    def _evict(self) -> None:
        while self.used_bytes > self.budget_bytes and self._unused:
            digest, _ = self._unused.popitem(last=False)
            self.used_bytes -= self._blocks.pop(digest).nbytes

    def _drop(self, session: int) -> None:
        if session in self._of:
            self.forget(session)
            self.dropped += 1
