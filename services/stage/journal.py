"""What a replica has sent of its sessions, kept so that a lost next replica can be built again. Pure.

For every position of a session the activations that crossed the boundary, in the bytes in which they crossed it. A
position costs a row: of a Llama with 8 B parameters 8 KiB, about a quarter of what its keys and values take on a stage
of eight layers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stagemesh.tensor import TensorView
from stagemesh.v1.tensor_pb2 import Tensor

# Rows of a frame when a journal is replayed.
CHUNK = 512


@dataclass(slots=True)
class _Rows:
    """Rows of one tensor, one after the other."""

    dtype: str
    shape: tuple[int, ...]
    row_bytes: int
    data: bytearray = field(default_factory=bytearray)


class Journal:
    """Of one session.

    Attributes:
        start: the first position in it; what lies before was there already.
        end: one past the last.
    """

    __slots__ = ("_hidden", "_sides", "end", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self._hidden: _Rows | None = None
        self._sides: dict[str, _Rows] = {}

    def __repr__(self) -> str:
        return f"<Journal {self.start}..{self.end} {self.nbytes} bytes>"

    @property
    def nbytes(self) -> int:
        """What it holds."""
        hidden = len(self._hidden.data) if self._hidden is not None else 0
        return hidden + sum(len(rows.data) for rows in self._sides.values())

    def add(self, first: int, count: int, tensor: TensorView, sides: Iterable[Tensor]) -> int:
        """Take the next positions.

        Args:
            first: their first row in `tensor`.
            count: how many.
            tensor: activations, `[rows, ...]`.
            sides: what crossed with them, `[rows, ...]` each.

        Returns:
            Bytes that it grew by.
        """
        if self._hidden is None:
            self._hidden = _rows_like(tensor.dtype, tensor.shape, tensor.data.nbytes)
        added = count * self._hidden.row_bytes
        at = first * self._hidden.row_bytes
        self._hidden.data += tensor.data[at : at + added]
        for side in sides:
            rows = self._sides.get(side.name)
            if rows is None:
                rows = self._sides[side.name] = _rows_like(side.dtype, side.shape, len(side.data))
            rows.data += side.data[first * rows.row_bytes : (first + count) * rows.row_bytes]
            added += count * rows.row_bytes
        self.end += count
        return added

    def cut(self, end: int) -> None:
        """Forget what lies at `end` and after it."""
        keep = max(end - self.start, 0)
        if self.start + keep >= self.end:
            return
        for rows in (self._hidden, *self._sides.values()):
            if rows is not None:
                del rows.data[keep * rows.row_bytes :]
        self.end = self.start + keep

    def chunks(self) -> Iterator[tuple[int, int, TensorView, list[Tensor]]]:
        """All of it, as frames take it: position, count, activations, and sides. A copy: the journal may grow meanwhile."""
        hidden = self._hidden
        if hidden is None:
            return
        whole = memoryview(bytes(hidden.data))
        for position in range(self.start, self.end, CHUNK):
            first = position - self.start
            count = min(CHUNK, self.end - position)
            part = whole[first * hidden.row_bytes : (first + count) * hidden.row_bytes]
            sides = [
                Tensor(
                    name=name,
                    dtype=rows.dtype,
                    shape=(count, *rows.shape),
                    data=bytes(rows.data[first * rows.row_bytes : (first + count) * rows.row_bytes]),
                )
                for name, rows in self._sides.items()
            ]
            yield position, count, TensorView(hidden.dtype, (count, *hidden.shape), part), sides


def _rows_like(dtype: str, shape: Iterable[int], nbytes: int) -> _Rows:
    rows, *rest = shape
    return _Rows(dtype, tuple(rest), nbytes // rows)


class Journals:
    """Those of one replica, within a budget of bytes.

    A session that would grow beyond the budget loses its journal: part of one is worth nothing, and dropping another
    one's would only move the loss. What it held is room for the others.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.dropped = 0
        self._told = 0
        self._of: dict[int, Journal] = {}

    def __repr__(self) -> str:
        return f"<Journals {len(self._of)} of {self.used_bytes}/{self.budget_bytes} bytes, dropped={self.dropped}>"

    def open(self, session: int, start: int) -> None:
        """Begin the journal of a session at a position, in place of an older one."""
        self.forget(session)
        if self.budget_bytes:
            self._of[session] = Journal(start)

    def get(self, session: int) -> Journal | None:
        """None when it was dropped, or never begun."""
        return self._of.get(session)

    def add(
        self, session: int, position: int, first: int, count: int, tensor: TensorView, sides: Iterable[Tensor]
    ) -> None:
        """Take what was sent of a session; see `Journal.add`. Positions that it has already are replaced."""
        journal = self._of.get(session)
        if journal is None:
            return
        if position < journal.end:
            self.cut(session, position)
        if position != journal.end:
            return self._drop(session)
        self.used_bytes += journal.add(first, count, tensor, sides)
        if self.used_bytes > self.budget_bytes:
            self._drop(session)

    def cut(self, session: int, end: int) -> None:
        """The session goes on at `end`: what lies there and after it will be sent again."""
        if journal := self._of.get(session):
            before = journal.nbytes
            journal.cut(end)
            self.used_bytes -= before - journal.nbytes

    def forget(self, session: int) -> None:
        """The session is over."""
        if journal := self._of.pop(session, None):
            self.used_bytes -= journal.nbytes

    def take_dropped(self) -> int:
        """How many were dropped since this was last asked."""
        dropped, self._told = self.dropped - self._told, self.dropped
        return dropped

    def _drop(self, session: int) -> None:
        self.forget(session)
        self.dropped += 1
